"""Run the collapse study, and draw its tables and pictures from the files in ``docs/results/``.

    python -m benchmarks.collapse_study --report              # redraws; runs nothing
    python -m benchmarks.collapse_study --hours 2             # what is missing, first things first
    python -m benchmarks.collapse_study --arms vote-quarter --seeds 40 --rollouts 1200
    python -m benchmarks.collapse_study --list                # what is finished, what is due
    python -m benchmarks.collapse_study --collect --out DIR   # finished runs into docs/results/

A finished run is skipped, one that was killed goes on from its last checkpoint, and one that is
asked for more rollouts is made longer. Each run has one thread. A run's figures go into
``docs/results/study/`` when it is finished, so the folders of the runs may be removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import FOLDER, Rows
from benchmarks.study_arms import ARMS, CONFIGS, PLAN
from benchmarks.study_indicators import record_warnings
from benchmarks.study_inputs import ONE_THREAD, ROOT, make, record_checkpoints
from benchmarks.study_report import write_report
from benchmarks.study_rows import FINISHED, read_or_empty, record

RECORDING = threading.Lock()


@dataclass(frozen=True)
class Job:
    """One run of the study.

    Attributes:
        arm: its name.
        seed: its seed.
        rollouts: rollouts after which it ends.
        folder: its folder.
        results: folder of the result files.
    """

    arm: str
    seed: int
    rollouts: int
    folder: Path
    results: Path

    @property
    def facts(self) -> dict[str, str] | None:
        """Return its line of ``runs.csv``, if it has one that was made as it would be."""
        row = read_or_empty(self.results / "study" / "runs.csv").get(f"{self.arm}/{self.seed}")
        return row if row and row["settings"] == ARMS[self.arm].digest else None

    @property
    def is_finished(self) -> bool:
        row = self.facts
        return row is not None and (
            row["ended by"] == "guard" or int(row["rollouts"]) >= self.rollouts
        )

    def factors(self) -> list[list[float]] | None:
        """Return the steps of the learning rate; None where a guarded run must come first."""
        arm = ARMS[self.arm]
        if arm.yoked_to is None:
            return [list(step) for step in arm.factors]
        rows = read_or_empty(self.results / "study" / "runs.csv")
        seeds = next(block.seeds for block in PLAN if arm.yoked_to in block.arms)
        other = seeds[(seeds.index(self.seed) + 1) % len(seeds)] if self.seed in seeds else None
        row = rows.get(f"{arm.yoked_to}/{other}")
        if row is None or row["settings"] != ARMS[arm.yoked_to].digest:
            return None
        steps = (step.split(":") for step in row["rates"].split()[1:])
        return [[int(rollout), float(factor)] for rollout, factor in steps]

    def command(self, factors: list[list[float]]) -> list[str]:
        """Return its command line."""
        arm = ARMS[self.arm]
        callback = {
            "class_path": "callbacks.LearningRateFactors",
            "init_args": {"factors": factors},
        }
        return [
            *(sys.executable, "-m", "rlif_lightning", "fit"),
            *(f"--config={CONFIGS / name}.yaml" for name in ("base", *arm.overlays)),
            f"--seed_everything={self.seed}",
            f"--trainer.default_root_dir={self.folder}",
            f"--trainer.max_steps={arm.updates * self.rollouts}",
            f"--model.optimizer.lr={arm.rate}",
            *arm.settings,
            *([f"--trainer.callbacks+={json.dumps(callback)}"] if factors else []),
            "--ckpt_path=auto",
        ]

    def run(self, factors: list[list[float]]) -> float:
        """Run it and record it; return wall seconds.

        Raises:
            RuntimeError: it failed; names its log.
        """
        made, settings = self.folder / "settings.txt", ARMS[self.arm].digest
        if not made.exists() or made.read_text() != settings:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        made.write_text(settings)
        started = time.perf_counter()
        with (self.folder / "log.txt").open("a") as log:
            environment = {**os.environ, **ONE_THREAD}
            command = self.command(factors)
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError(
                f"{self.arm}, seed {self.seed}: exit code {done.returncode}, see"
                f" {self.folder}/log.txt"
            )
        seconds = time.perf_counter() - started
        mark = self.folder / FINISHED
        before = json.loads(mark.read_text())["seconds"] if mark.exists() else 0.0
        facts = {"seconds": before + seconds, "settings": settings, "commit": commit()}
        mark.write_text(json.dumps(facts))
        with RECORDING:
            self.record()
        return seconds

    def record(self) -> None:
        """Put the finished run into the result files."""
        record(self.folder, self.arm, self.seed, self.results)
        record_warnings(self.folder, f"{self.arm}/{self.seed}", self.results)

    def collect(self) -> bool:
        """Put a run that has finished in its folder into the result files, if it is as it was."""
        mark = self.folder / FINISHED
        is_there = mark.exists() and json.loads(mark.read_text())["settings"] == (
            ARMS[self.arm].digest
        )
        if is_there:
            self.record()
        return is_there


def commit() -> str:
    """Return the short name of the commit that is checked out, or ``unknown``."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def attempt(job: Job, deadline: float) -> str | None:
    """Run a job unless it is too late or finished; return its failure as a sentence."""
    if time.time() > deadline or job.is_finished:
        return None
    factors = job.factors()
    if factors is None:
        other = ARMS[job.arm].yoked_to
        print(f"{job.arm}, seed {job.seed}: waits for {other} of the next seed", flush=True)
        return None
    try:
        for name in ARMS[job.arm].needs:
            make(name)
            if name == "words":
                record_checkpoints(ROOT / "runs" / name, job.results)
        seconds = job.run(factors)
    except RuntimeError as error:
        print(f"FAILED {error}", flush=True)
        return str(error)
    print(
        f"{time.strftime('%H:%M')} {job.arm}, seed {job.seed}, {job.rollouts} rollouts:"
        f" {seconds:.0f} s",
        flush=True,
    )
    return None


def run_all(jobs: list[Job], at_once: int, hours: float) -> list[str]:
    """Run what is not finished; return each failure as a sentence."""
    due = [job for job in jobs if not job.is_finished]
    done, deadline = len(jobs) - len(due), time.time() + 3600 * hours
    print(f"{done} of {len(jobs)} runs are finished; {len(due)} to go", flush=True)
    with ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda job: attempt(job, deadline), due)
        return [failure for failure in found if failure]


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """Return what the command line asks for, in the order of the plan."""
    asked = [run for block in PLAN for run in block.runs()]
    if given.arms and given.seeds:  # also what no block holds
        asked += [(arm, seed, 300) for seed in given.seeds for arm in given.arms]
    jobs = {}
    for arm, seed, rollouts in asked:
        if arm in (given.arms or ARMS) and seed in (given.seeds or [seed]):
            folder, rollouts = (
                given.out.resolve() / arm / f"seed_{seed}",
                given.rollouts or rollouts,
            )
            jobs[arm, seed, rollouts] = Job(arm, seed, rollouts, folder, given.results.resolve())
    return list(jobs.values())


def listing(jobs: list[Job]) -> Rows:
    """Return, for each arm and length, which seeds are finished and which are due."""
    lines: Rows = {}
    for job in jobs:
        line = lines.setdefault(f"{job.arm} {job.rollouts}", {"finished": "", "due": ""})
        line["finished" if job.is_finished else "due"] += f" {job.seed}"
    return lines


def main(args: list[str] | None = None) -> None:
    """Run what is missing, then write the report.

    Raises:
        SystemExit: 1 if a run failed; 2 for an unknown arm.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the plan")
    parser.add_argument("--rollouts", type=int, help="default: as many as the plan says")
    parser.add_argument("--hours", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--report", action="store_true", help="run nothing, redraw")
    parser.add_argument(
        "--collect", action="store_true", help="run nothing, read the finished runs of --out again"
    )
    parser.add_argument("--list", action="store_true", help="run nothing, say what is due")
    given = parser.parse_args(args)
    jobs = jobs_of(given)
    if given.list:
        for name, line in listing(jobs).items():
            print(f"{name}: finished{line['finished'] or ' none'}; due{line['due'] or ' none'}")
        return
    if given.collect:
        found = {(job.arm, job.seed): job for job in jobs}.values()
        print(f"{sum(job.collect() for job in found)} runs are collected from {given.out}")
    failures = [] if given.report or given.collect else run_all(jobs, given.jobs, given.hours)
    write_report(given.results)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
