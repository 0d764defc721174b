"""What dynamic sampling brings and costs: two rewards, four arms, six seeds.

    python -m benchmarks.dynamic_sampling                # a quarter of an hour of one core
    python -m benchmarks.dynamic_sampling --summarise    # of the runs that are finished

The runs are the quickstart's with one reward, gold answers or the vote, over 30 rollouts. The arms
are `off`, `skip` (max_draws 1), `draws_3` (max_draws 3), and `off_faster`, which is `off` with a
higher learning rate. It writes ``docs/results/dynamic_sampling.csv``. Runs have one thread; a run
that is finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import statistics
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import FOLDER, write_results
from rlif_lightning import cli
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).resolve().parent.parent
REWARDS = {
    "gold": {"gold": {"head": "GoldAnswer", "weight": 1.0}},
    "vote": {"vote": {"head": "ClusterVote", "weight": 1.0}},
}
ARMS = {
    "off": [],
    "skip": ['--model.dynamic_sampling={"max_draws": 1}'],
    "draws_3": ['--model.dynamic_sampling={"max_draws": 3}'],
    "off_faster": ["--model.optimizer.lr=1.3e-4"],  # instead of 1e-4: 1 / (share with signal)
}
ROLLOUTS, PROMPTS, GROUP = 30, 16, 8
SETTINGS = [
    "--config=configs/quickstart.yaml",
    f"--trainer.limit_train_batches={ROLLOUTS}",
    f"--data.prompts_per_rollout={PROMPTS}",
    f"--data.group_size={GROUP}",
    '--model.evaluation={"samples": 4, "greedy": false}',
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.val_check_interval=10",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
STUDENT = {6: 2.571, 5: 2.776, 4: 3.182, 3: 4.303, 2: 12.706}  # 97.5 % of t, by number of seeds


@dataclass(frozen=True)
class Measured:
    """One finished run.

    Attributes:
        curve: ``[n, 3]`` rollouts, tokens sampled in training so far, accuracy in per cent.
        cpu: user and system seconds of the whole run, with its evaluations and without imports.
        figures: means over rollouts.
    """

    curve: np.ndarray
    cpu: float
    figures: dict[str, float]

    @property
    def final(self) -> float:
        """Accuracy at the end, per cent."""
        return float(self.curve[-1, 2])

    @property
    def tokens(self) -> float:
        """Tokens sampled in training."""
        return float(self.curve[-1, 1])

    def at(self, tokens: float) -> float:
        """Return the accuracy after so many sampled tokens, between evaluations on a line."""
        return float(np.interp(tokens, self.curve[:, 1], self.curve[:, 2]))


def run_arm(reward: str, arm: str, seed: int, folder: Path) -> None:
    """Make a run unless it is finished, in a process that forks from this one.

    Raises:
        RuntimeError: it failed; names its log.
    """
    if (folder / "finished.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    given = [*SETTINGS, f"--model.rewards={json.dumps(REWARDS[reward])}", *ARMS[arm], *own]
    before, log = _cpu(), folder / "log.txt"
    process = multiprocessing.get_context("fork").Process(target=_train, args=(given, log))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{folder.name}: exit code {process.exitcode}, see {log}")
    (folder / "finished.json").write_text(json.dumps({"cpu": _cpu() - before}))


def _train(given: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    cli.main(["fit", *given])


def _cpu() -> float:
    """Return the CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path) -> Measured:
    """Read a finished run."""
    version = folder / "version_0"
    logged = read_logged(version / "metrics.csv")
    rows = [row for row in logged.rows if "rollout/length" in row]
    drawn = np.cumsum([0.0, *map(sampled_tokens, rows)])
    evaluations = json.loads((version / "evaluation.json").read_text())
    found = {each["rollouts"]: 100 * each["figures"]["accuracy"]["value"] for each in evaluations}
    curve = np.array([[n, drawn[n], found[n]] for n in sorted(found)])
    names = [name for name in rows[0] if name.startswith(("dynamic/", "reward/"))]
    figures = {name: float(np.nanmean([float(row[name]) for row in rows])) for name in names}
    return Measured(curve, json.loads((folder / "finished.json").read_text())["cpu"], figures)


def sampled_tokens(row: dict[str, str]) -> float:
    """Return the tokens that a rollout sampled: those in the update and those discarded.

    Args:
        row: of metrics.csv, of a rollout with PROMPTS problems and GROUP completions each.
    """
    empty = float(row.get("dynamic/empty_places") or 0)
    length = float(row["rollout/length"])
    kept = 0.0 if math.isnan(length) else length * GROUP * (PROMPTS - empty)
    return kept + float(row.get("dynamic/discarded_tokens") or 0)


def summary(runs: dict[tuple[str, str, int], Measured]) -> dict[str, dict[str, str]]:
    """Return a row for each reward and arm; differences are to `off` at the same seed."""
    rows = {}
    for reward, arm in product(REWARDS, ARMS):
        seeds = [seed for r, a, seed in runs if (r, a) == (reward, arm)]
        pairs = [(runs[reward, arm, s], runs[reward, "off", s]) for s in seeds]
        ones = [one for one, _ in pairs]
        signal = [one.figures.get("dynamic/signal", math.nan) for one in ones]
        empty = [one.figures.get("dynamic/empty_places", math.nan) for one in ones]
        rows[f"{reward}_{arm}"] = {
            "accuracy %": _mean([one.final for one in ones], 2),
            "minus off": _interval([one.final - off.final for one, off in pairs]),
            "minus off, mean of curve": _interval([_mean_gap(*pair) for pair in pairs]),
            "minus off, at its tokens": _interval([_gap_at_tokens(*pair) for pair in pairs]),
            "tokens, thousands": _mean([one.tokens / 1000 for one in ones], 0),
            "CPU s": _mean([one.cpu for one in ones], 0),
            "first draws with signal": _mean(signal, 3),
            "score, first draws": _mean([_score(one, reward, "first_mean") for one in ones], 3),
            "score, trained on": _mean([_score(one, reward, "mean") for one in ones], 3),
            "empty places": _mean(empty, 2),
            "seeds": str(len(seeds)),
        }
    return rows


def _score(one: Measured, reward: str, which: str) -> float:
    """Return the mean score over rollouts; without dynamic sampling both are of all groups."""
    return one.figures.get(f"reward/{reward}/{which}", one.figures[f"reward/{reward}/mean"])


def _mean_gap(one: Measured, off: Measured) -> float:
    return float((one.curve[1:, 2] - off.curve[1:, 2]).mean())


def _gap_at_tokens(one: Measured, off: Measured) -> float:
    """Return the difference where the one that sampled less in all has ended."""
    tokens = min(one.tokens, off.tokens)
    return one.at(tokens) - off.at(tokens)


def _mean(values: list[float], digits: int) -> str:
    mean = statistics.fmean(values)
    return "" if math.isnan(mean) else f"{mean:.{digits}f}"


def _interval(values: list[float]) -> str:
    """Return a mean with its 95 % interval by Student's t; differences in points."""
    if not any(values):
        return ""
    mean, half = statistics.fmean(values), math.nan
    if len(values) > 1:
        half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def main() -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/dynamic_sampling"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--summarise", action="store_true", help="make no run")
    given = parser.parse_args()
    out, runs = given.out.resolve(), {}
    for seed, reward, arm in product(given.seeds, REWARDS, ARMS):
        folder = out / f"{reward}_{arm}_{seed}"
        if not given.summarise:
            run_arm(reward, arm, seed, folder)
            print(f"{folder.name} is finished", flush=True)
        if (folder / "finished.json").is_file():
            runs[reward, arm, seed] = measure(folder)
    notes = {
        "command": "python -m benchmarks.dynamic_sampling",
        "conditions": f"CPU, one thread; {ROLLOUTS} rollouts; in brackets 95 % intervals",
    }
    write_results(given.results / "dynamic_sampling.csv", notes, summary(runs))
    print(f"{len(runs)} runs: {given.results}/dynamic_sampling.csv")


if __name__ == "__main__":
    main()
