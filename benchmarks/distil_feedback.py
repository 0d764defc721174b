"""DistIL against GRPO on sums of which a rule points out the first wrong step.

    python scripts/make_feedback_model.py --output runs/distil/model
    python -m benchmarks.distil_feedback --tune     # every setting on the tuning seed
    python -m benchmarks.distil_feedback            # the chosen settings on the judging seeds

All methods start from the same model, which can read such feedback
(``scripts/make_feedback_model.py``), and draw the same problems. GRPO learns from the single bit,
right or wrong. DistIL's teacher, the average of the policy, reads the first wrong step of a
completion, or that it is right. In ``distil_wrong`` right completions have no feedback and no loss.
Each method has equally many learning rates, and the one with the highest
pass@1 on the tuning seed is judged. Runs have one thread and go one after the other in this
process. A run that is finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from benchmarks.finished_runs import figures_of_run
from benchmarks.results import FOLDER, read_results, write_results
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).resolve().parent.parent
ROLLOUTS = 20
TUNING_SEED, JUDGING_SEEDS = 100, (0, 1, 2, 3, 4, 5)
RATES = ("3e-5", "1e-4", "3e-4", "1e-3")
COMMON = [
    "--config=configs/quickstart.yaml",
    '--model.rewards={"gold": {"head": "GoldAnswer"}}',
    "--model.advantage=GRPO",
    f"--trainer.limit_train_batches={ROLLOUTS}",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
]
FIGURES = ("accuracy", "pass@8", "greedy_accuracy")


def distil(tells_right: bool = True, **settings: object) -> list[str]:
    """Return the arguments of DistIL with the rule's feedback."""
    teacher = {"feedback": "callback", "template": "{feedback}*{prompt}", "needs_gold": True}
    made = {"class_path": "DistIL", "init_args": {"teacher": teacher, **settings}}
    given = {"tells_right": tells_right}
    writer = {"class_path": "benchmarks.wrong_step.FirstWrongStep", "init_args": given}
    return [
        f"--model.objective={json.dumps(made)}",
        f"--trainer.callbacks+={json.dumps(writer)}",
    ]


METHODS = {
    "grpo": ["--model.objective=Clipped"],
    "distil_local": distil(credit="local"),
    "distil": distil(),
    "distil_wrong": distil(tells_right=False),
}


def run(method: str, rate: str, seed: int, folder: Path, model: Path) -> dict[str, float]:
    """Make one run unless it is finished; return its figures."""
    arguments = [*COMMON, *METHODS[method], f"--model.optimizer.lr={rate}"]
    arguments += [f"--seed_everything={seed}", f"--model.policy.name={model}"]
    arguments += [f"--trainer.default_root_dir={folder}"]

    def with_cost(version: Path, seconds: float) -> dict[str, float]:
        return measured(version) | {"CPU seconds": seconds}

    return figures_of_run(f"{method} {rate} seed {seed}", arguments, folder, with_cost)


def measured(version: Path) -> dict[str, float]:
    """Return the figures of the evaluation after training, and the last rollout's entropy."""
    last = json.loads((version / "evaluation.json").read_text())[-1]["figures"]
    rows = [row for row in read_logged(version / "metrics.csv").rows if "policy/entropy" in row]
    if len(rows) != ROLLOUTS:
        raise ValueError(f"{version} has {len(rows)} rollouts, not {ROLLOUTS}; remove it")
    found = {name: float(last[name]["value"]) for name in FIGURES}
    return found | {"entropy": float(rows[-1]["policy/entropy"])}


def tune(out: Path, model: Path) -> dict[str, dict[str, str]]:
    """Return a row for each method and learning rate on the tuning seed."""
    rows = {}
    for rate in RATES:
        for method in METHODS:
            folder = out / f"tuning_{method}_{rate}"
            found = run(method, rate, TUNING_SEED, folder, model)
            figures = {name: f"{value:.4f}" for name, value in found.items()}
            rows[f"{method}_{rate}"] = {"method": method, "rate": rate, **figures}
    return rows


def chosen(rows: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return each method's learning rate with the highest pass@1; of equal ones the first."""
    return {
        method: max(RATES, key=lambda rate: float(rows[f"{method}_{rate}"]["accuracy"]))
        for method in METHODS
    }


def judge(
    out: Path, model: Path, rates: dict[str, str], num_seeds: int
) -> dict[str, dict[str, str]]:
    """Make the judging runs, a seed of all methods at a time; return each method's row."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in JUDGING_SEEDS[:num_seeds]:
        for method, rate in rates.items():
            folder = out / f"judging_{method}_{rate}_{seed}"
            found[method].append(run(method, rate, seed, folder, model))
    return {method: row(rates[method], figures, found["grpo"]) for method, figures in found.items()}


def row(
    rate: str, figures: list[dict[str, float]], baseline: list[dict[str, float]]
) -> dict[str, str]:
    """Return means with standard deviations between seeds, and the seeds above GRPO's."""
    found = {"rate": rate, "seeds": str(len(figures))}
    for name in figures[0]:
        values = [each[name] for each in figures]
        found[name] = f"{statistics.fmean(values):.4f} ({statistics.stdev(values):.4f})"
    for name in ("accuracy", "pass@8"):
        pairs = zip(figures, baseline, strict=True)
        found[f"seeds above grpo, {name}"] = str(sum(one[name] > two[name] for one, two in pairs))
        found[f"{name} by seed"] = " ".join(f"{each[name]:.4f}" for each in figures)
    return found


def main() -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="the tuning runs")
    parser.add_argument("--seeds", type=int, default=6, help="judging seeds, the first ones")
    parser.add_argument("--out", type=Path, default=Path("runs/distil"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    os.chdir(ROOT)
    out = given.out.resolve()
    command = "python -m benchmarks.distil_feedback" + (" --tune" if given.tune else "")
    if not given.tune and given.seeds != len(JUDGING_SEEDS):
        command += f" --seeds {given.seeds}"
    shared = f"CPU, one thread; {ROLLOUTS} rollouts; 200 held-out problems, 8 samples each"
    tuning = given.results / "distil_tuning.csv"
    if given.tune:
        notes = {"command": command, "conditions": f"{shared}; seed {TUNING_SEED}"}
        write_results(tuning, notes, tune(out, out / "model"), key="setting")
        return
    rows = judge(out, out / "model", chosen(read_results(tuning)), given.seeds)
    notes = {"command": command, "conditions": f"{shared}; mean (sd) over seeds"}
    write_results(given.results / "distil.csv", notes, rows, key="method")


if __name__ == "__main__":
    main()
