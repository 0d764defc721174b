"""Why the entity rubric is for right answers only: toy questions of several hops, by three rewards.

    python scripts/make_trace_model.py --output runs/longtrace/model
    python -m benchmarks.longtrace --tune     # the tuning seed; prints its rows
    python -m benchmarks.longtrace            # the judging seeds
    python -m benchmarks.longtrace --overlap  # trains nothing: which distractors name an entity

The start walks, lists all names or answers at once (``scripts/make_trace_model.py``). Every arm has
GRPO's advantage and the same settings but its reward: the outcome alone, or with the entity rubric
at eta 0.3, for right answers only (``positive``) or for all (``additive``). What is measured in all
arms, with weight 0: gold answers, the number of different names in a completion, and whether it is
a list. Runs have one thread and go one after the other in this process. A run that is
finished is not made again. Results go to ``docs/results/longtrace.csv``, and those of ``--overlap``
to ``docs/results/longtrace_overlap.csv``.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.arm_study import ROOT, ArmStudy, shown
from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import write_results
from rlif_lightning.data import long_problems

ROLLOUTS, LATE = 15, 5
LENGTHS, PROBLEMS = (100, 200, 400), 500  # of --overlap
TUNING_SEEDS, JUDGING_SEEDS = (100,), (0, 1, 2, 3, 4, 5)
OF_A_LIST = 8  # different names, of twelve; a walk has four at most
# The graph of scripts/make_trace_model.py.
DATA = ["--documents=12", "--links=1", "--length=24", "--per-graph=2000", "--hops", "3", "4"]
COMMON = [
    "--config=configs/quickstart.yaml",
    "--config=configs/related/longtrace.yaml",
    f"--trainer.max_steps={ROLLOUTS}",
    "--trainer.max_epochs=-1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
    "--model.sampling.max_new_tokens=20",
    "--model.optimizer.init_args.lr=1e-3",
]
ARMS = {"additive": (0.3, False), "positive": (0.3, True), "outcome": (0.0, True)}
FIGURES = {
    "accuracy": "reward/gold/mean",
    "names": "reward/names/mean",
    "lists": "reward/lists/mean",
    "recall": "entity/recall",
    "recall of wrong": "entity/recall_wrong",
    "entropy": "policy/entropy",
}


def names(completions: Sequence[str], **_: object) -> list[float]:
    """Return the number of different names in each completion."""
    words = [set(completion.replace("####", " ").split()) for completion in completions]
    return [float(len(each)) for each in words]


def lists(completions: Sequence[str], **_: object) -> list[float]:
    """Return 1 for each completion that is a list of names, else 0."""
    return [float(number >= OF_A_LIST) for number in names(completions)]


def rewards(eta: float, is_positive_only: bool) -> str:
    """Return the argument of an arm's reward, with what is measured beside it."""
    settings = {"head": "GoldAnswer", "eta": eta, "positive_only": is_positive_only}
    measured = {
        each.__name__: {
            "class_path": "RewardFunction",
            "init_args": {"function": f"benchmarks.longtrace.{each.__name__}"},
        }
        for each in (names, lists)
    }
    heads = {"trace": {"class_path": "EntityRubric", "init_args": settings}, "gold": "GoldAnswer"}
    given = {
        name: {"head": head, "weight": float(name == "trace")}
        for name, head in (heads | measured).items()
    }
    return f"--model.rewards={json.dumps(given)}"


def run(arm: str, seed: int, out: Path) -> list[dict[str, float]]:
    """Make one run unless it is finished; return the figures of each of its rollouts."""
    folder = out / f"{arm}_{seed}"
    source = {split: f"{out.parent}/data/{split}.jsonl" for split in ("train", "validation")}
    arguments = [
        *COMMON,
        rewards(*ARMS[arm]),
        f"--data.source.init_args={json.dumps(source)}",
        f"--model.policy.name={out.parent}/model",
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
    ]
    return figures_of_run(f"{arm} seed {seed}", arguments, folder, lambda it, _: measured(it))


def measured(version: Path) -> list[dict[str, float]]:
    """Return the figures of each rollout."""
    rows = logged_rollouts(version, "reward/gold/mean", ROLLOUTS)
    return [{name: float(row[key]) for name, key in FIGURES.items()} for row in rows]


def figures_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return a run's figures: of its last rollouts, and two of the first, before any update."""
    late = {name: statistics.fmean(row[name] for row in rows[-LATE:]) for name in FIGURES}
    first = {f"{name} at first": rows[0][name] for name in ("accuracy", "lists")}
    return late | first


def table(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return a row for each arm; makes the runs that are missing, seed by seed."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm, figures in found.items():
            figures.append(figures_of(run(arm, seed, out)))
    rows = {}
    for arm, figures in found.items():
        rows[arm] = {name: shown([each[name] for each in figures]) for name in figures[0]}
        for name in ("accuracy", "lists"):
            rows[arm][f"each seed's {name}"] = " ".join(f"{each[name]:.2f}" for each in figures)
    return rows


def overlaps() -> dict[str, dict[str, str]]:
    """Return the mean overlap of each way of choosing distractors, for three lengths."""
    rows: dict[str, dict[str, str]] = {way: {} for way in long_problems.WAYS}
    for length in LENGTHS:
        graphs = long_problems.synthetic_graphs(200, 3, 0)
        made = long_problems.problems(graphs, 20, long_problems.Recipe((2, 4), length), 0)
        found = [shares for _, shares in itertools.islice(made, PROBLEMS)]
        for way, row in rows.items():
            row[f"{length} words"] = f"{statistics.fmean(shares[way] for shares in found):.3f}"
    return rows


STUDY = ArmStudy(
    "longtrace",
    table,
    TUNING_SEEDS,
    JUDGING_SEEDS,
    f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {LATE}",
    "runs/longtrace/runs",
)


def main() -> None:
    """Make the data and the runs that are missing and write the result file."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--overlap", action="store_true", help="write the overlaps alone")
    given = parser.parse_args()
    if given.overlap:
        about = f"{PROBLEMS} problems of 2 to 4 hops on graphs of 200 documents with 3 links"
        notes = {"command": "python -m benchmarks.longtrace --overlap", "conditions": about}
        write_results(given.results / "longtrace_overlap.csv", notes, overlaps(), key="way")
        return
    folder = ROOT / given.out.parent
    if not (folder / "model").is_dir():
        raise SystemExit(
            f"{folder / 'model'} is missing; run python scripts/make_trace_model.py"
            f" --output {folder / 'model'}"
        )
    sizes = ["--problems=240", "--validation-problems=40", f"--output={folder / 'data'}"]
    long_problems.main([*DATA, *sizes])
    STUDY.run(given)


if __name__ == "__main__":
    main()
