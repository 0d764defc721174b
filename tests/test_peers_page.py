"""The page beside TRL and verl: what is ours names a test that exists, what is theirs a file."""

from __future__ import annotations

import re

import pytest

from harness.files import ROOT

PAGE = (ROOT / "docs" / "peers.md").read_text().partition("## The same numbers")[0]
HEAD = ["", "TRL 1.16.0", "verl 0.9.1", "here", "test"]
TABLES = [
    [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M)
]
ROWS = {cells[0]: cells for table in TABLES for cells in table[2:]}


def test_tables_have_one_head_and_rows_one_name():
    assert len(TABLES) == 4
    assert all(table[0] == HEAD for table in TABLES)
    assert len(ROWS) == sum(len(table) - 2 for table in TABLES) > 30


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_files_and_an_existing_test(name):
    _, trl, verl, ours, test = ROWS[name]
    for theirs in (trl, verl):
        assert theirs == "no" or re.search(r"`\w+(?:/\w+)+\.py`", theirs), theirs
    if ours == "no":
        assert test == ""
        return
    found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", test)
    assert found, test
    source = (ROOT / "tests" / found[1]).read_text()
    assert re.search(rf"^    ?(?:    )?def {found[2]}\(|^def {found[2]}\(", source, re.M), test
