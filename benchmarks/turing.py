"""Turing-RL beside its baselines on templated dialogues, with a rule as the judge.

    python -m benchmarks.turing            # the warm start and 16 runs
    python -m benchmarks.turing --tune     # the warm start and one run of a tuning seed

Every run begins with one warm start: an untrained model is trained on texts (``Supervised``) and
exported. All arms log all figures, and each trains on one of them. Runs have one thread and go one
after the other in this process. A run that is finished is not made again. Results go to
``docs/results/turing.csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.arm_study import shown
from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import FOLDER, write_results
from benchmarks.turing_dialogues import is_perfect, make_model, rows
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "turing"
SEEDS, TUNING_SEED, ROLLOUTS, WATCHED = (0, 1, 2, 3), 100, 20, 5
TRAINING, WARM_UP = (1, 1024), (2, 4096)  # seed and size of the data
RULES = "benchmarks.turing_dialogues"
COMMON = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--data.answer_column=null",
    "--model.sampling.max_new_tokens=16",
]
FIGURES = {
    "rating": "turing/rating",
    "copied": "turing/copied",
    "assistant": "reward/assistant/mean",
    "perfect": "reward/perfect/mean",
    "similarity": "reward/similar/mean",
    "logprob": "reward/likely/mean",
    "length": "rollout/length",
    "entropy": "policy/entropy",
}


def source(name: str, seed: int, size: int) -> str:
    """Write a file of dialogues, and return it as a source."""
    path = RUNS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows(seed, size))))
    return json.dumps({"class_path": "LocalFiles", "init_args": {"train": str(path)}})


def heads(trained: str, cap: float) -> dict[str, Any]:
    """Return all heads, of which one has a weight."""

    def rule(name: str) -> dict[str, Any]:
        return {"class_path": "RuleJudge", "init_args": {"rule": f"{RULES}.{name}"}}

    made = {
        "human": ("PairwiseJudgeHead", {"judge": rule("judge"), "cap": cap}),
        "similar": ("SimilarityJudgeHead", {"judge": rule("similarity")}),
        "likely": ("TargetLogprob", {}),
        "perfect": ("RewardFunction", {"function": f"{RULES}.is_perfect"}),
        "assistant": ("RewardFunction", {"function": f"{RULES}.is_assistant_like"}),
    }
    return {
        name: {
            "head": {"class_path": kind, "init_args": given},
            "weight": float(name == trained),
        }
        for name, (kind, given) in made.items()
    }


ARMS = {
    "turing": ("human", 5.0, "GRPO"),
    "turing, no cap": ("human", 7.0, "GRPO"),
    "similarity": ("similar", 5.0, "GRPO"),
    "logprob": ("likely", 5.0, "DrGRPO"),
}


def warm_start() -> Path:
    """Return the folder of the warm start, which is made once."""
    untrained, folder = RUNS / "untrained", RUNS / "warm_start"
    if not (untrained / "config.json").exists():
        make_model(untrained)
    arguments = [
        *COMMON, "--config=configs/related/supervised.yaml", "--seed_everything=0",
        f"--model.policy.name={untrained}", f"--data.source={source('warm_up', *WARM_UP)}",
        "--data.prompts_per_rollout=128", "--model.optimizer.lr=3e-3",
        "--model.policy.attention=eager",  # texts are many and short: padded rows are faster
        "--model.objective.column=text", f"--trainer.default_root_dir={folder}",
    ]  # fmt: skip
    figures_of_run("warm start", arguments, folder, lambda it, _: late(it, ["supervised/loss"]))
    return next(folder.glob("version_*")) / "export" / "last"


def late(version: Path, names: list[str]) -> dict[str, float]:
    """Return the means of figures over the last rollouts of a run."""
    logged = [row for row in read_logged(version / "metrics.csv").rows if "policy/entropy" in row]
    return {name: statistics.fmean(float(row[name]) for row in logged[-WATCHED:]) for name in names}


def measured(version: Path) -> dict[str, float]:
    """Return a run's late figures, and its first rollout's, which every arm draws alike."""
    logged = logged_rollouts(version, "policy/entropy", ROLLOUTS)
    found = late(version, [*FIGURES.values()])
    shown = {short: found[name] for short, name in FIGURES.items()}
    return shown | {f"first {short}": float(logged[0][name]) for short, name in FIGURES.items()}


def run(name: str, seed: int) -> dict[str, float]:
    """Make one run unless it is finished; return its figures."""
    trained, cap, advantage = ARMS[name]
    folder = RUNS / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    objective = {"class_path": "Clipped", "init_args": {"reference_kl": {"weight": 0.001}}}
    arguments = [
        *COMMON, f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}",
        f"--model.policy.name={warm_start()}", f"--data.source={source('training', *TRAINING)}",
        f"--trainer.limit_train_batches={ROLLOUTS}", "--model.update.updates_per_rollout=2",
        f"--model.rewards={json.dumps(heads(trained, cap))}", f"--model.advantage={advantage}",
        f"--model.objective={json.dumps(objective)}", "--model.optimizer.lr=1e-3",
    ]  # fmt: skip
    return figures_of_run(f"{name} seed {seed}", arguments, folder, lambda it, _: measured(it))


def human_share() -> float:
    """Return the share of the humans' replies with all three merits."""
    made = rows(*TRAINING)
    texts = [f"<reasoning> a </reasoning> [HUMAN]: {row['reply']}" for row in made]
    return statistics.fmean(is_perfect(texts, [row["question"] for row in made]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true")
    is_tuning = parser.parse_args().tune
    os.chdir(ROOT)  # where configs are named from
    if is_tuning:
        print(run("turing", TUNING_SEED))
        return
    table: dict[str, dict[str, str]] = {}
    for name in ARMS:
        each = [run(name, seed) for seed in SEEDS]
        if not table:
            first = {short: shown([it[f"first {short}"] for it in each]) for short in FIGURES}
            table["warm start"] = first | {f"rating of seed {s}": "" for s in SEEDS}
        table[name] = {short: shown([it[short] for it in each]) for short in FIGURES}
        table[name] |= {f"rating of seed {s}": f"{each[s]['rating']:.3f}" for s in SEEDS}
    notes = {
        "command": "python -m benchmarks.turing",
        "seeds": f"{SEEDS}; in brackets the deviation",
        "perfect": f"of the humans' replies {human_share():.3f}",
    }
    write_results(FOLDER / "turing.csv", notes, table, key="arm")


if __name__ == "__main__":
    main()
