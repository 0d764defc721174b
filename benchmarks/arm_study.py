"""A study of arms over seeds: its command line and its result file."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import FOLDER, Rows, write_results

ROOT = Path(__file__).resolve().parent.parent


def shown(values: Sequence[float]) -> str:
    """Return a mean, with the standard deviation in brackets where there are several values."""
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


@dataclass(frozen=True)
class ArmStudy:
    """What is run and where its rows go.

    Attributes:
        name: of the module in ``benchmarks`` and of the result file.
        table: returns a row for each arm, of the folder of the runs and the seeds; it makes the
            runs that are missing.
        tuning: the seed by which settings were chosen.
        judging: the seeds whose rows are written.
        conditions: under which the runs are made, for the result file.
        out: folder of the runs.
    """

    name: str
    table: Callable[[Path, Sequence[int]], Rows]
    tuning: Sequence[int]
    judging: Sequence[int]
    conditions: str
    out: str

    def parser(self, described: str | None) -> argparse.ArgumentParser:
        """Return the command line's parser."""
        parser = argparse.ArgumentParser(
            description=described, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--tune", action="store_true", help="the tuning seed; prints its rows")
        parser.add_argument("--seeds", type=int, nargs="+", default=[*self.judging])
        parser.add_argument("--out", type=Path, default=Path(self.out))
        parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
        return parser

    def run(self, given: argparse.Namespace) -> None:
        """Make the runs that are missing; write the result file, or print the tuning rows."""
        os.chdir(ROOT)
        if given.tune:
            for arm, row in self.table(given.out.resolve(), self.tuning).items():
                print(arm, row)
            return
        rows = self.table(given.out.resolve(), given.seeds)
        seeds = "" if [*given.seeds] == [*self.judging] else f" --seeds {_spaced(given.seeds)}"
        notes = {
            "command": f"python -m benchmarks.{self.name}{seeds}",
            "conditions": f"{self.conditions}; mean (sd) over seeds"
            f" {', '.join(map(str, given.seeds))}",
        }
        write_results(given.results / f"{self.name}.csv", notes, rows, key="arm")


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
