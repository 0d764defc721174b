"""Make a report of runs, at any time.

``python -m callbacks.run_report RUN_DIR [LABEL=RUN_DIR ...] --out report.html``

A run's folder is the one with ``metrics.csv``. One run's report goes into that folder; several are
drawn over each other, and their settings compared. A folder of PNGs with the page's name lies
beside the page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from callbacks.report import read_run, write_report


def main(arguments: list[str] | None = None) -> None:
    """Read the folders and write the report.

    Raises:
        SystemExit: 2 where a folder is no run's, with a message of one line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m callbacks.run_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="run folder, or label=folder")
    parser.add_argument(
        "--out",
        type=Path,
        help="page to write, or the folder of its report.html (default: that of a single run)",
    )
    parser.add_argument("--title", help="heading of the page")
    args = parser.parse_args(arguments)
    named = [_named(run) for run in args.runs]
    out = args.out or (named[0][1] / "report.html" if len(named) == 1 else Path("report.html"))
    out = out / "report.html" if out.is_dir() or not out.suffix else out
    try:
        runs = [read_run(folder, label) for label, folder in named]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    title = args.title or f"Run report: {', '.join(run.label for run in runs)}"
    write_report(runs, out, title)
    print(
        f"{out} and {len(list(out.with_suffix('').glob('*.png')))} pictures in"
        f" {out.with_suffix('')}/"
    )


def _named(run: str) -> tuple[str, Path]:
    """Split ``label=folder``; a folder alone is its own label.

    An existing folder with "=" in its name is taken as it is.
    """
    label, separator, folder = run.partition("=")
    return (label, Path(folder)) if separator and not Path(run).exists() else (run, Path(run))


if __name__ == "__main__":
    main()
