"""Compare multi-turn rollouts with TRL's tool loop, and with a loop that prefills all ids again.

    python -m benchmarks.multi_turn --trl-python TRL_ENVIRONMENT/bin/python
    python -m benchmarks.multi_turn ... --results docs/results/multi_turn.csv   # for docs/speed.md

The three sides take the same model, problems, tool class and lengths (``multi_turn_work.py``), and
must report the same numbers of turns, sampled and observed tokens. Each runs several times in a
process of its own with one thread, the sides in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.compare import median, run, table_of
from benchmarks.results import write_results

WORKLOADS: dict[str, list[str]] = {
    "8 turns of 16, 32 words seen": [],
    "2 to 8 turns of 8 to 32": ["--random"],
    "8 turns of 16, 256 words seen": ["--observation=256"],
}
WORK = ("turns", "sampled", "observed")


def measure(name: str, trl_python: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run the sides of one workload in turn.

    Raises:
        RuntimeError: they did not do the same work.
    """
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "again": [], "trl": []}
    for _ in range(repeats):
        flags = WORKLOADS[name]
        sides["ours"].append(run(sys.executable, "multi_turn_ours.py", flags))
        sides["again"].append(run(sys.executable, "multi_turn_ours.py", [*flags, "--again"]))
        sides["trl"].append(run(trl_python, "multi_turn_trl.py", flags))
    done = {side: [[each[key] for key in WORK] for each in runs] for side, runs in sides.items()}
    if len({tuple(each) for runs in done.values() for each in runs}) != 1:
        raise RuntimeError(f"{name}: the sides did different work, {WORK} = {done}")
    return sides


def row_of(sides: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return one line of the table: heading -> figure as it is printed."""
    ours, again, trl = sides["ours"], sides["again"], sides["trl"]
    seconds, peaks = (
        [median(runs, key) for runs in (ours, again, trl)] for key in ("cpu_seconds", "peak_mib")
    )
    above = [median(runs, "above_start_mib") for runs in (ours, trl)]
    return {
        "sampled": str(ours[0]["sampled"]),
        "seen": str(ours[0]["observed"]),
        "ours, CPU s": f"{seconds[0]:.2f}",
        "again, CPU s": f"{seconds[1]:.2f}",
        "TRL, CPU s": f"{seconds[2]:.2f}",
        "CPU share": f"{seconds[0] / seconds[2]:.2f}",
        "ours, MiB": f"{peaks[0]:.0f}",
        "again, MiB": f"{peaks[1]:.0f}",
        "TRL, MiB": f"{peaks[2]:.0f}",
        "peak share": f"{peaks[0] / peaks[2]:.2f}",
        "above start": f"{above[0] / above[1]:.2f}",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", required=True, help="of an environment with trl 1.16")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--results", type=Path, help="result file of the docs")
    a = parser.parse_args()
    if shutil.which(a.trl_python) is None:
        parser.error(f"--trl-python={a.trl_python} is no program; give that of an environment")
    console, rows = Console(width=160), {}
    for name in WORKLOADS:
        sides = measure(name, a.trl_python, a.repeats)
        rows[name] = row_of(sides)
        console.print(name, rows[name])
    if a.results:
        versions = {**sides["trl"][0]["versions"], **sides["ours"][0]["versions"]}
        conditions = ", ".join(f"{name} {version}" for name, version in versions.items())
        command = f"python -m benchmarks.multi_turn {shlex.join(sys.argv[1:])}"
        notes = {"command": command, "conditions": conditions}
        write_results(a.results, notes, rows, key="workload")
    console.print(table_of(rows))


if __name__ == "__main__":
    main()
