"""The word problems that scripts/make_mawps.py picks from published files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness.files import ROOT

SINGLE = [
    {"input": "Ann has 7 caps and gets 2 more. How many  has she ?", "target": 9.0},
    {"input": "Ann has 7 caps and loses 2. How many has she?", "target": 5.0},
    {"input": "Ann has 7 boxes of 2 caps. How many caps has she?", "target": 14.0},  # a product
    {"input": "Ann has 7 caps and gets 21 more. How many has she?", "target": 28.0},  # above 20
    {"input": "Ann has 7.5 caps and gets 2 more. How many has she?", "target": 9.5},
    {"input": "Ann has 7 caps, gets 2 and loses 1. How many has she?", "target": 8.0},
    {"input": "Ann has 1,200 caps and loses 200. How many has she?", "target": 1000.0},
]
OTHER = [
    {"input": "Ann has 7 caps and gets 2 more . How many has she?", "target": 9.0},  # held out
    {"input": "Bob has 3 caps and 4 hats. How many things has he?", "target": 7.0},
]
SVAMP = [
    {
        "Body": "Cleo had 20 pens.\u2028She lost 8.",
        "Question": "How many are left?",
        "Answer": 12.0,
    },
    {"Body": "Cleo had 20 pens", "Question": "How many are 3 times as many?", "Answer": 60.0},
]


def make(data, output):
    command = [sys.executable, ROOT / "scripts" / "make_mawps.py", f"--data={data}"]
    return subprocess.run([*command, f"--output={output}"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    files = {"mawps_singleop": SINGLE, "mawps_addsub": OTHER, "mawps_singleeq": OTHER}
    for name, rows in (files | {"svamp": SVAMP}).items():
        (folder / f"{name}.jsonl").write_text(
            "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
        )
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_small_sums_are_kept_once_and_none_of_training_is_held_out(published, tmp_path):
    done = make(published, tmp_path)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "validation.jsonl") == [
        {"question": "Ann has 7 caps and gets 2 more. How many has she ?", "answer": "9"},
        {"question": "Ann has 7 caps and loses 2. How many has she?", "answer": "5"},
    ]
    assert read(tmp_path / "train.jsonl") == [
        {"question": "Bob has 3 caps and 4 hats. How many things has he?", "answer": "7"},
        {"question": "Cleo had 20 pens. She lost 8. How many are left?", "answer": "12"},
    ]


def test_a_file_that_is_missing_is_named(published, tmp_path):
    done = make(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "mawps_singleop.jsonl is missing; put the published file there" in done.stderr
    assert "Traceback" not in done.stderr
