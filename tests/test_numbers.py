"""Every marked number of the docs stands in a result file, and on one page only.

Marks are comments of Markdown: ``<!-- result: FILE.ROW.COLUMN -->91.4<!-- /result -->`` around a
number, and ``<!-- results: FILE -->`` before a table whose headings are columns of the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.results import FOLDER, markdown_table, read_results, write_results

ROOT = Path(__file__).resolve().parent.parent
INLINE = re.compile(r"<!-- result: (\S.*?) -->(.*?)<!-- /result -->", re.S)
TABLE = re.compile(r"<!-- results: (\S+) -->\n+((?:\|.*\n)+)")
OWNERS = {
    "README.md"
}  # the first screen repeats numbers; every other page owns those that it marks
Mark = tuple[str, str, str]  # file, row, column
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/related", "configs", "configs/paper", "callbacks")
    for path in (ROOT / folder).glob("*.md")
)


def text_of(page: Path) -> str:
    """A page without code spans that show what a mark looks like."""
    return re.sub(r"`<!--.*?-->`", "", page.read_text())


def marks_of(text: str) -> Iterator[tuple[Mark, str]]:
    """Each marked number of a page, with the text that the page prints."""
    for name, printed in INLINE.findall(text):
        file, row, column = name.split(".", 2)
        yield (file, row, column), printed
    for file, table in TABLE.findall(text):
        head, _, *rows = [[plain(cell) for cell in line.split("|")[1:-1]] for line in lines(table)]
        for cells in rows:
            for column, cell in zip(head[1:], cells[1:], strict=True):
                if column:  # a column without a heading holds remarks
                    yield (file, cells[0], column), cell


def lines(table: str) -> list[str]:
    return table.strip().splitlines()


def plain(cell: str) -> str:
    return cell.strip().replace("`", "").replace("**", "")


def agrees(printed: str, measured: str) -> bool:
    """Whether a printed number is the measured one, rounded to the printed digits."""
    printed = plain(printed).removesuffix(" %")
    if printed == measured:
        return True
    number = re.fullmatch(r"(-?\d+(?:\.(\d+))?)", printed)
    first = re.match(r"-?\d+(?:\.\d+)?(?=$| \()", measured)  # of "98.0 (97.4 to 98.3)": the mean
    if number is None or first is None:
        return False
    # The half of a last digit may be printed either way.
    return abs(float(number[1]) - float(first[0])) <= 0.5000001 * 10.0 ** -len(number[2] or "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_marked_numbers_are_measured(page):
    text = text_of(page)
    # A mark that is not closed, or a table mark without its table, would not be checked.
    assert (
        text.count("<!-- result: ") == text.count("<!-- /result -->") == len(INLINE.findall(text))
    )
    assert text.count("<!-- results: ") == len(TABLE.findall(text))
    for (file, row, column), printed in marks_of(text):
        rows = read_results(FOLDER / f"{file}.csv")
        assert row in rows, f"{file}.csv has no row {row!r}"
        assert column in rows[row], f"{file}.csv has no column {column!r}"
        measured = rows[row][column]
        assert agrees(printed, measured), f"{page.name}: {file}.{row}.{column} is {measured}"


def test_a_number_stands_on_one_page():
    owners = defaultdict(set)
    for page in PAGES:
        if page.name not in OWNERS or page.parent != ROOT:
            for mark, _ in marks_of(text_of(page)):
                owners[mark].add(str(page.relative_to(ROOT)))
    assert owners  # there are marks
    assert {mark: pages for mark, pages in owners.items() if len(pages) > 1} == {}


def test_every_result_file_is_shown():
    shown = {mark[0] for page in PAGES for mark, _ in marks_of(text_of(page))}
    drawn = {"quickstart_curves"}  # by scripts/pictures.py
    assert {path.stem for path in FOLDER.glob("*.csv")} == shown | drawn


@pytest.mark.parametrize(
    ("printed", "measured", "same"),
    [
        ("91.4", "91.38", True),
        ("91.4 %", "91.38", True),
        ("**91**", "91.38", True),
        ("91.5", "91.38", False),
        ("91.40", "91.38", False),
        ("98.0", "98.0 (97.4 to 98.3)", True),
        ("97.4", "98.0 (97.4 to 98.3)", False),
        ("2 of 3 (90, 120)", "2 of 3 (90, 120)", True),
        ("2", "2 of 3 (90, 120)", False),
        ("0.07", "0.065", True),
        ("-0.2", "-0.226", True),
        ("about 91", "91.38", False),
    ],
)
def test_rounding(printed, measured, same):
    assert agrees(printed, measured) is same


def test_marks_are_read():
    page = (
        "x <!-- result: a.row 1.col (b) -->3.1<!-- /result --> y\n\n<!-- results: t -->\n"
        "| name | one | |\n| --- | --- | --- |\n| `r` | **2** | remark |\n"
    )
    assert list(marks_of(page)) == [(("a", "row 1", "col (b)"), "3.1"), (("t", "r", "one"), "2")]


def test_result_files_come_back(tmp_path):
    path = tmp_path / "made" / "file.csv"
    rows = {"a, b": {"x": "1.50", "y": "no"}, "c": {"x": "2", "y": ""}}
    write_results(path, {"command": "python x.py", "conditions": "one thread"}, rows)
    assert path.read_text().startswith(
        "# command: python x.py\n# conditions: one thread\nrun,x,y\n"
    )
    assert read_results(path) == rows
    path.write_text(path.read_text().replace("# command", "# order"))
    with pytest.raises(ValueError, match="which command"):
        read_results(path)
    path.write_text("# command: x\nrun,x\na,1\na,2\n")
    with pytest.raises(ValueError, match="two rows 'a'"):
        read_results(path)
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
