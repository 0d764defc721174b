"""The quickstart's numbers: its seeds and its arms, evaluated every 10 rollouts.

    python -m benchmarks.quickstart                # ten minutes of one core

It writes ``docs/results/quickstart.csv`` (one row for each run) and
``docs/results/quickstart_curves.csv`` (accuracy at each evaluation). Runs have one thread. A run
that is finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.results import FOLDER, write_results

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
EVERY = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=10"]
ARMS = {
    "vote_logprob": [],
    "gold": ["--config=configs/gold.yaml"],
    "paper_pair": ["--model.rewards.certainty.head=SelfCertainty"],
    "self_certainty": ['--model.rewards={"certainty": {"head": "SelfCertainty"}}'],
    "stable": ["--config=configs/stable.yaml"],
}
RUNS = [("vote_logprob", 0), ("vote_logprob", 1), ("vote_logprob", 2)] + [
    (arm, 0) for arm in ARMS if arm != "vote_logprob"
]
PERCENT = ("accuracy", "maj@8", "greedy_accuracy", "agreement")
FIGURES = (*PERCENT, "entropy", "length")


def command_of(arm: str, seed: int, folder: Path) -> list[str]:
    """Return the command line of one run."""
    own = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    start = [sys.executable, "-m", "rlif_lightning", "fit", "--config=configs/quickstart.yaml"]
    return [*start, *ARMS[arm], *EVERY, *own]


def run_arm(arm: str, seed: int, folder: Path) -> list[dict]:
    """Make the run unless it is finished; return its evaluations.

    Raises:
        CalledProcessError: the run failed.
    """
    finished = folder / "finished"
    if not finished.is_file():
        subprocess.run(
            command_of(arm, seed, folder), cwd=ROOT, env=os.environ | ONE_THREAD, check=True
        )
        finished.touch()
    evaluations = json.loads((folder / "version_0" / "evaluation.json").read_text())
    return [{"rollouts": each["rollouts"], **each["figures"]} for each in evaluations]


def figures_of(evaluations: list[dict]) -> dict[str, str]:
    """Return each figure before and after training; shares in per cent."""
    found = {}
    for name in FIGURES:
        scale, digits = (100, 2) if name in PERCENT else (1, 4)
        for when, evaluation in (("before", evaluations[0]), ("after", evaluations[-1])):
            found[f"{name} {when}"] = f"{scale * evaluation[name]['value']:.{digits}f}"
    return found


def curve_of(evaluations: list[dict]) -> dict[str, str]:
    """Return the accuracy in per cent at each evaluation; the last one of a rollout counts."""
    points = {each["rollouts"]: 100 * each["accuracy"]["value"] for each in evaluations}
    return {str(rollouts): f"{value:.2f}" for rollouts, value in points.items()}


def main() -> None:
    """Make the runs that are missing and write both result files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_table"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    out = given.out.resolve()
    found = {f"{arm}_{seed}": run_arm(arm, seed, out / f"{arm}_{seed}") for arm, seed in RUNS}
    notes = {
        "command": "python -m benchmarks.quickstart",
        "conditions": "CPU, one thread; the last part of a row's name is its seed; shares in %",
    }
    rows = {name: figures_of(evaluations) for name, evaluations in found.items()}
    write_results(given.results / "quickstart.csv", notes, rows)
    curves = {name: curve_of(evaluations) for name, evaluations in found.items()}
    write_results(given.results / "quickstart_curves.csv", notes, curves)
    print(f"{len(rows)} runs: {given.results}/quickstart.csv, quickstart_curves.csv")


if __name__ == "__main__":
    main()
