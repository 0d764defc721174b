"""Result files: the measured numbers of the docs, as small CSV tables in ``docs/results/``.

A file begins with comment lines (``# command: ...``, ``# conditions: ...``). Its first column names
a row; every other column is a figure. ``tests/test_numbers.py`` compares each number that a page
marks with the cell ``FILE.ROW.COLUMN``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"

Rows = dict[str, dict[str, str]]


def write_results(
    path: Path, notes: Mapping[str, str], rows: Mapping[str, Mapping[str, object]], key: str = "run"
) -> None:
    """Write a result file: notes as comments, then a line for each row.

    Args:
        path: file to replace.
        notes: ``command``, and what else the numbers depend on.
        rows: row name -> figure -> value; the same figures in each row.
        key: heading of the first column.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {text}\n" for name, text in notes.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([key, *next(iter(rows.values()))])
        writer.writerows([name, *figures.values()] for name, figures in rows.items())


def read_results(path: Path) -> Rows:
    """Read a result file.

    Raises:
        ValueError: the file has no ``# command:`` line, or names a row twice.
    """
    lines = path.read_text().splitlines()
    if not any(line.startswith("# command: ") for line in lines):
        raise ValueError(f"{path} does not say which command made it; add a line '# command: ...'")
    rows: Rows = {}
    for cells in csv.DictReader(line for line in lines if not line.startswith("# ")):
        name, *values = cells.values()
        if name in rows:
            raise ValueError(f"{path} has two rows {name!r}; name each row once")
        rows[name] = dict(zip([*cells][1:], values, strict=True))
    return rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
