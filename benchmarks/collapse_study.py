"""Run the collapse study: arms of ``configs/study/`` on several seeds, a table and two figures.

    python -m benchmarks.collapse_study              # all arms, seeds 0, 1, 2, two runs at a time
    python -m benchmarks.collapse_study --arms gold paper --seeds 3 4 5
    python -m benchmarks.collapse_study --summarise  # of the runs that are finished
    python -m benchmarks.collapse_study -- --model.optimizer.lr=5e-5    # for every arm

Runs that are finished are skipped, so a study that was cut off goes on; each run has one thread. In
``--out`` appear a folder for each run, ``summary.json``, ``runs.csv``, ``table.md``, the result
files ``study.csv`` and ``study_guard.csv``, ``accuracy.png`` and ``figures.png``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from benchmarks.collapse_plots import draw_arms, draw_figures
from benchmarks.collapse_summary import (
    by_arm,
    measure,
    outcomes,
    read_run,
    table_of,
    warnings_in_time,
)
from benchmarks.results import write_results

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "study"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Job:
    """One run of the study.

    Attributes:
        arm: name of its overlay.
        seed: its seed.
        folder: where it lies.
        extra: settings added to its command line.
    """

    arm: str
    seed: int
    folder: Path
    extra: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        configs = [f"--config={CONFIGS / name}.yaml" for name in ("base", self.arm)]
        own = [f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.folder}"]
        return [sys.executable, "-m", "rlif_lightning", "fit", *configs, *own, *self.extra]

    @property
    def settings(self) -> dict[str, object]:
        """Return what the run depends on; a finished run with other settings is repeated."""
        texts = {name: (CONFIGS / f"{name}.yaml").read_text() for name in ("base", self.arm)}
        return {"configs": texts, "seed": self.seed, "extra": list(self.extra)}

    @property
    def finished(self) -> bool:
        mark = self.folder / "finished.json"
        return mark.exists() and json.loads(mark.read_text())["settings"] == self.settings

    def run(self) -> float:
        """Run one job; return wall seconds.

        Raises:
            RuntimeError: it failed; names its log.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        started = time.perf_counter()
        with (self.folder / "log.txt").open("w") as log:
            done = subprocess.run(
                self.command, cwd=ROOT, env={**os.environ, **ONE_THREAD}, stdout=log, stderr=log
            )
        if done.returncode:
            raise RuntimeError(
                f"{self.arm}, seed {self.seed}: exit code {done.returncode}, see"
                f" {self.folder}/log.txt"
            )
        seconds = time.perf_counter() - started
        (self.folder / "finished.json").write_text(
            json.dumps({"settings": self.settings, "seconds": seconds})
        )
        return seconds


def run_all(jobs: list[Job], at_once: int) -> list[str]:
    """Run what is not finished; return each failure as a sentence."""
    due = [job for job in jobs if not job.finished]
    print(
        f"{len(jobs) - len(due)} of {len(jobs)} runs are finished; {len(due)} to go, {at_once} at"
        " a time",
        flush=True,
    )
    failures = []
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(job.run): job for job in due}
        for number, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            if error := future.exception():
                failures.append(str(error))
                print(f"[{number}/{len(due)}] FAILED {error}", flush=True)
            else:
                print(
                    f"[{number}/{len(due)}] {job.arm}, seed {job.seed}: {future.result():.0f} s",
                    flush=True,
                )
    return failures


def summarise(jobs: list[Job], out: Path) -> None:
    """Write tables and figures of the runs that are finished.

    Raises:
        ValueError: none is.
    """
    runs = [read_run(job.folder / "version_0", job.arm, job.seed) for job in jobs if job.finished]
    if not runs:
        raise ValueError(f"no finished run in {out}: run without --summarise first")
    measured = [measure(run) for run in runs]
    arms = by_arm(measured)
    (out / "summary.json").write_text(json.dumps({"arms": arms, "runs": measured}, indent=1))
    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(measured[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(measured)
    tables = {"study": outcomes(arms), "study_guard": warnings_in_time(arms)}
    for name, rows in tables.items():  # as they stand in docs/results/
        write_results(out / f"{name}.csv", {"command": shlex.join(sys.argv)}, rows, key="arm")
    (out / "table.md").write_text("\n\n".join(map(table_of, tables.values())) + "\n")
    draw_arms(runs, out / "accuracy.png")
    draw_figures(runs, out / "figures.png")
    print((out / "table.md").read_text())
    print(f"{len(runs)} runs: {out}/table.md, summary.json, runs.csv, accuracy.png, figures.png")


def main(args: list[str] | None = None) -> None:
    """Run what is missing, then summarise.

    Raises:
        SystemExit: 1 if a run failed; 2 for an unknown arm.
    """
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arms", nargs="+", default=known, choices=known, metavar="ARM", help=", ".join(known)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/study"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--at-once", type=int, default=2, help="runs at the same time (default: %(default)s)"
    )
    parser.add_argument("--summarise", action="store_true", help="make no run")
    parser.add_argument("extra", nargs="*", help="settings for every run, after --")
    given = parser.parse_args(args)
    out = given.out.resolve()
    jobs = [
        Job(arm, seed, out / arm / f"seed_{seed}", tuple(given.extra))
        for seed in given.seeds
        for arm in given.arms
    ]
    failures = [] if given.summarise else run_all(jobs, given.at_once)
    if not failures or any(job.finished for job in jobs):
        summarise(jobs, out)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
