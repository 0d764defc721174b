"""Files as people have them: what is read as it was written, and what is refused by file, line and
column.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlif_lightning.data.sources import LocalFiles


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def load(folder: Path, name: str, content: bytes) -> list[dict]:
    path = folder / name
    path.write_bytes(content)
    return list(LocalFiles(str(path)).load("train"))


BOM = b"\xef\xbb\xbf"
ONE, TWO = {"question": "1+1=", "answer": "2"}, {"question": "2+2=", "answer": "4"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", BOM + lines(ONE, TWO)),
        ("blank.jsonl", lines(ONE) + b"\n\n" + lines(TWO) + b"\n"),
        ("windows.jsonl", lines(ONE, TWO).replace(b"\n", b"\r\n")),
        ("bom.json", BOM + json.dumps([ONE, TWO]).encode()),
        ("lines.json", lines(ONE, TWO)),
        ("bom.csv", BOM + b"question,answer\n1+1=,2\n2+2=,4\n"),
        ("blank.csv", b"question,answer\n\n1+1=,2\r\n2+2=,4\n\n"),
    ],
)
def test_byte_order_marks_and_blank_lines_are_no_rows(tmp_path, name, content):
    assert load(tmp_path, name, content) == [ONE, TWO]


def test_csv_holds_texts_as_they_were_written(tmp_path):
    content = 'question,answer\na,084\nb,NA\nc,None\nd,\n"e, f\ng","1,000"\nh,2020-01-01\ni,1.0\n'
    rows = load(tmp_path, "a.csv", content.encode())
    assert [row["answer"] for row in rows] == [
        "084",
        "NA",
        "None",
        "",
        "1,000",
        "2020-01-01",
        "1.0",
    ]
    assert rows[4]["question"] == "e, f\ng"


def test_a_row_that_lacks_a_column_has_none_there(tmp_path):
    rows = load(
        tmp_path,
        "a.jsonl",
        lines({"question": "a"}, {"question": "b", "answer": 1}, {"question": "c"}),
    )
    assert [row["answer"] for row in rows] == [None, 1, None]


def test_structs_of_different_keys_keep_their_texts(tmp_path):
    rows = load(
        tmp_path, "a.jsonl", lines({"x": {"gold": "084"}}, {"x": {"gold": "null", "level": 1}})
    )
    assert [row["x"]["gold"] for row in rows] == ["084", "null"]


DATED = [
    {"day": "2024-01-02", "at": {"time": ["2020-01-01T00:00:00Z"]}, "n": 1},
    {"day": "2024-01-03 10:00", "at": {"time": []}, "n": 2},
    {"day": None, "at": None, "n": 3},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_texts_that_look_like_dates_stay_texts(tmp_path, name):
    whole = lines(*DATED) if name == "a.jsonl" else json.dumps(DATED).encode()
    assert load(tmp_path, name, whole) == DATED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            lines(ONE) + b'{"question": "b", "answer"\n',
            "a.jsonl, line 2: no JSON (Expecting ':'",
        ),
        ("a.jsonl", lines(ONE, 7), "a.jsonl, line 2: 7 is no object {column: value}"),
        ("a.json", b'[{"a": 1},]', "a.json: no JSON in UTF-8"),
        (
            "a.jsonl",
            lines(ONE) + '{"question": "é"}'.encode("latin1"),
            "a.jsonl, line 2: not UTF-8",
        ),
        (
            "a.jsonl",
            lines({"a": "084"}, {"a": None}, {"a": 2}),
            "column 'a' mixes texts and other values: '084' in",
        ),
        (
            "a.jsonl",
            lines({"a": {"b": [1]}}, {"a": {"b": "x"}}),
            "column 'a.b' mixes texts and other values: 'x' in",
        ),
        (
            "a.csv",
            b"question,answer\na,1\nb,2,3\n",
            "a.csv, line 3: 3 fields, but 2 columns in the header",
        ),
        ("a.csv", b"question,answer\na\n", "a.csv, line 2: 1 fields, but 2 columns in the header"),
        ("a.csv", b"answer,answer\na,1\n", "needs one name for each column"),
        (
            "a.csv",
            "question,answer\né,1\n".encode("latin1"),
            "a.csv: cannot be read as CSV in UTF-8",
        ),
        ("a.parquet", b"PAR", "a.parquet: cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_told_by_file_line_and_column(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path, name, content)


def test_files_of_other_columns_are_refused(tmp_path):
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    paths[0].write_text("question,answer\n1,2\n")
    paths[1].write_text("question,gold\n1,2\n")
    with pytest.raises(
        ValueError,
        match=r"b.csv: the columns are \['question', 'gold'\], but \['question', 'answer",
    ):
        LocalFiles([str(path) for path in paths]).load("train")
    paths[1].write_text("answer,question\n4,3\n")
    rows = list(LocalFiles([str(path) for path in paths]).load("train"))
    assert rows == [{"question": "1", "answer": "2"}, {"question": "3", "answer": "4"}]


@pytest.mark.slow
def test_huge_rows_are_read_and_never_printed(tmp_path):
    huge = "x" * 3_000_000
    assert len(
        load(tmp_path, "a.csv", f"question,answer\n{huge},1\n".encode())[0]["question"]
    ) == len(huge)
    with pytest.raises(ValueError, match="mixes texts") as info:
        load(tmp_path, "a.jsonl", lines({"a": huge}, {"a": 1}))
    assert len(str(info.value)) < 1000
    with pytest.raises(ValueError, match="no JSON") as info:
        load(tmp_path, "b.jsonl", lines({"a": 1}) + b'{"a": "' + huge.encode() + b"\n")
    assert len(str(info.value)) < 1000
