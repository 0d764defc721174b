"""The script that judges published rows, on rows made by hand in the published columns."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import check_benchmarks
import pytest

from benchmarks.results import read_results


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path):
    """Four sets; AIME's second solution has no box, and 12_5 is no number to the library."""
    whole = [
        {"problem": "1+1?", "answer": "2", "level": 1, "solution": r"It is \boxed{2}."},
        {"problem": "7 in base 5?", "answer": "12_5", "level": 5, "solution": r"\boxed{12_5}"},
    ]
    write(tmp_path / "math500.jsonl", whole)
    competition = [
        {"problem": "200+4=?", "answer": "204", "solution": r"\boxed{204}"},
        {"problem": "30+3=?", "answer": "33", "solution": "33"},
    ]
    write(tmp_path / "aime24.jsonl", competition)
    write(tmp_path / "svamp.jsonl", [{"Body": "2", "Question": "+1?", "Answer": 3.0}])
    write(tmp_path / "gsm8k.jsonl", [{"question": "2*9?", "answer": "2*9 = 18\n#### 18"}])
    return tmp_path


def test_it_counts_and_writes_what_differs(folder, tiny_models, capsys):
    out, results = folder / "judge.jsonl", folder / "results.csv"
    options = ["--tokenizer", str(tiny_models["qwen2"]), "--out", str(out)]
    check_benchmarks.main([str(folder), *options, "--results", str(results)])
    assert not logging.root.manager.disable  # the caller's own messages go on
    table = read_results(results)
    assert list(table) == [
        "MATH-500",
        "GSM8K test",
        "AIME 2024",
        "SVAMP",
    ]  # the others are not there
    counts = {
        name: [row[verdict] for verdict in ("problems", "not read", *check_benchmarks.VERDICTS)]
        for name, row in table.items()
    }
    assert counts == {
        "MATH-500": ["2", "0", "2 of 2", "2 of 2", "1 of 2", "2 of 2"],
        "GSM8K test": ["1", "0", "1 of 1", "1 of 1", "1 of 1", "1 of 1"],
        "AIME 2024": ["2", "0", "2 of 2", "2 of 2", "2 of 2", "1 of 2"],
        "SVAMP": ["1", "0", "1 of 1", "1 of 1", "1 of 1", "-"],
    }
    differ = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["set"], row["gold"]) for row in differ] == [
        ("MATH-500", "12_5"),
        ("AIME 2024", "33"),
    ]
    assert "MATH-500 | 2 | " in capsys.readouterr().out


def test_an_epoch_of_the_paper_leaves_problems_out():
    """By the loader of a run: 8 rollouts of 882 and 59 of 126 of 7,500 problems."""

    class Split:
        def __len__(self) -> int:
            return 7500

    assert list(check_benchmarks.epochs(Split())) == [
        "8 rollouts of 882: 7056 of 7500 problems",
        "59 rollouts of 126: 7434 of 7500 problems",
    ]
