"""A study of DistIL against GRPO: learning rates on a tuning seed, the best ones on six seeds.

Each method has equally many learning rates, and the one with the highest pass@1 on the tuning seed
is judged. Runs have one thread and go one after the other in this process. A run that is finished
is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import FOLDER, read_results, write_results

ROOT = Path(__file__).resolve().parent.parent
TUNING_SEED, JUDGING_SEEDS = 100, (0, 1, 2, 3, 4, 5)
COMMON = [
    "--config=configs/quickstart.yaml",
    "--model.advantage=GRPO",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
]
FIGURES = ("accuracy", "pass@8", "greedy_accuracy")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: of the result files.
        module: that is run with ``python -m``.
        methods: the arguments of each; ``grpo`` is what the others are compared with.
        common: further arguments of all.
        rates: learning rates, as texts.
        rollouts: of a run.
        conditions: in words, for the result files.
    """

    name: str
    module: str
    methods: Mapping[str, Sequence[str]]
    common: Sequence[str]
    rates: Sequence[str]
    rollouts: int
    conditions: str

    def run(self, method: str, rate: str, seed: int, folder: Path) -> dict[str, float]:
        """Make one run unless it is finished; return its figures.

        Args:
            method: one of ``methods``.
            rate: the learning rate.
            seed: of the run.
            folder: the run's own, beside that of the model, ``model``.
        """
        arguments = [*COMMON, *self.common, *self.methods[method], f"--model.optimizer.lr={rate}"]
        arguments += [f"--seed_everything={seed}"]
        arguments += [f"--model.policy.name={folder.parent / 'model'}"]
        arguments += [f"--trainer.default_root_dir={folder}"]

        def with_cost(version: Path, seconds: float) -> dict[str, float]:
            return self.measured(version) | {"CPU seconds": seconds}

        return figures_of_run(f"{method} {rate} seed {seed}", arguments, folder, with_cost)

    def measured(self, version: Path) -> dict[str, float]:
        """Return the figures of the evaluation after training, and the last rollout's entropy."""
        last = json.loads((version / "evaluation.json").read_text())[-1]["figures"]
        rows = logged_rollouts(version, "policy/entropy", self.rollouts)
        found = {name: float(last[name]["value"]) for name in FIGURES}
        return found | {"entropy": float(rows[-1]["policy/entropy"])}

    def tune(self, out: Path) -> dict[str, dict[str, str]]:
        """Return a row for each method and learning rate on the tuning seed."""
        rows = {}
        for rate in self.rates:
            for method in self.methods:
                found = self.run(method, rate, TUNING_SEED, out / f"tuning_{method}_{rate}")
                figures = {name: f"{value:.4f}" for name, value in found.items()}
                rows[f"{method}_{rate}"] = {"method": method, "rate": rate, **figures}
        return rows

    def chosen(self, rows: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Return each method's rate with the highest pass@1; of equal ones the first."""
        return {
            method: max(self.rates, key=lambda rate: float(rows[f"{method}_{rate}"]["accuracy"]))
            for method in self.methods
        }

    def judge(
        self, out: Path, rates: Mapping[str, str], num_seeds: int
    ) -> dict[str, dict[str, str]]:
        """Make the judging runs, a seed of all methods at a time; return each method's row."""
        found: dict[str, list[dict[str, float]]] = {method: [] for method in self.methods}
        for seed in JUDGING_SEEDS[:num_seeds]:
            for method, rate in rates.items():
                folder = out / f"judging_{method}_{rate}_{seed}"
                found[method].append(self.run(method, rate, seed, folder))
        return {name: row(rates[name], each, found["grpo"]) for name, each in found.items()}


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


def main(study: Study, doc: str | None) -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="the tuning runs")
    parser.add_argument("--seeds", type=int, default=6, help="judging seeds, the first ones")
    parser.add_argument("--out", type=Path, default=Path("runs") / study.name)
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    os.chdir(ROOT)
    out = given.out.resolve()
    command = f"python -m {study.module}" + (" --tune" if given.tune else "")
    if not given.tune and given.seeds != len(JUDGING_SEEDS):
        command += f" --seeds {given.seeds}"
    tuning = given.results / f"{study.name}_tuning.csv"
    if given.tune:
        notes = {"command": command, "conditions": f"{study.conditions}; seed {TUNING_SEED}"}
        write_results(tuning, notes, study.tune(out), key="setting")
        return
    rows = study.judge(out, study.chosen(read_results(tuning)), given.seeds)
    notes = {"command": command, "conditions": f"{study.conditions}; mean (sd) over seeds"}
    write_results(given.results / f"{study.name}.csv", notes, rows, key="method")
