"""Peak memory of a step against prompts per step, and against the token budget of the update.

    python benchmarks/memory.py

With ``max_rows`` fixed, a rollout of any number of prompts is decoded and trained in the same
memory. Only the token budget raises memory, at most in proportion.
"""

from __future__ import annotations

import sys

from compare import run
from rich.console import Console
from rich.progress import track
from rich.table import Table

COMMON = ["--lengths=random", "--steps=2", "--max-rows=32"]
CASES = [
    (4, 8),
    (16, 8),
    (64, 8),
    (16, 16),
    (16, 32),
    (16, 64),
]  # prompts per step, completions per micro-batch


def main() -> None:
    """Run the cases and print a table."""
    table = Table(title="Peak resident memory of a step", title_justify="left")
    for heading in (
        "prompts per step",
        "completions per micro-batch",
        "peak, MiB",
        "above start, MiB",
    ):
        table.add_column(heading, justify="right")
    for prompts, rows in track(CASES, "cases", console=Console(stderr=True)):
        flags = [*COMMON, f"--prompts-per-rollout={prompts}", f"--micro-batch={rows}"]
        result = run(sys.executable, "step.py", flags)
        peak, start = result["peak_rss_mib"], result["rss_before_training_mib"]
        table.add_row(str(prompts), str(rows), f"{peak:.0f}", f"{peak - start:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
