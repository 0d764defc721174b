"""A page of docs with tables that a script writes between two marks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

Marks = tuple[str, str]  # before and behind the tables


def replaced(page: str, marks: Marks, tables: str) -> str:
    """Return the text of a page with these tables."""
    begin, end = marks
    before, rest = page.split(begin)
    return f"{before}{begin}\n{tables}\n{end}{rest.split(end)[1]}"


def command_line(doc: str | None, path: Path, marks: Marks, tables: str, stale: str) -> None:
    """Print tables; ``--write`` puts them in the page, ``--check`` fails if it has others."""
    parser = argparse.ArgumentParser(description=str(doc).split("\n")[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    print(tables)
    page = path.read_text()
    found = replaced(page, marks, tables)
    if given.write:
        path.write_text(found)
    if given.check and found != page:
        sys.exit(stale)
