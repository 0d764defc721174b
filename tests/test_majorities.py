"""What became of each problem's majority, on files made by hand; and two published laws."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from benchmarks.laws import fit_entropy_law, fit_sharpening, sharpened, straight_line
from benchmarks.majorities import Majority, compared, main, majorities, majority_of, outcome, shares

# Problem -> gold, answers at the start and at the end, what became of it.
PROBLEMS = {
    3: ("7", "7 7 8 -", "7 7 7 8", "sharpened"),
    5: ("7", "7 7 7 8", "7 7 8 9", "kept"),
    8: ("7", "8 8 7 9", "7 7.0 8 8.5", "learnt"),
    9: ("7", "7 7 8 9", "8 8 7 7.5", "degraded"),
    11: ("7", "8 8 7 9", "- - - -", "wrong"),
    12: ("7", "8 8 8 8", "9 9 7 8", "wrong"),
}


def records(column: int) -> list[dict]:
    made = []
    for index, row in PROBLEMS.items():
        for number, answer in enumerate(row[column].split()):
            given = None if answer == "-" else answer
            verdict = given is not None and float(given) == float(row[0])
            made.append({"index": index, "completion_number": number, "kind": "sample"})
            made[-1] |= {"answer": given, "correct": verdict, "completion": f"x={answer}"}
        made.append({"index": index, "kind": "greedy", "answer": "0", "correct": True})
    return made


def test_hand_made_problems():
    rows = compared(majorities(records(1)), majorities(records(2)))
    assert {row["index"]: row["outcome"] for row in rows} == {
        index: row[3] for index, row in PROBLEMS.items()
    }
    by_index = {row["index"]: row for row in rows}
    assert by_index[8]["end_answer"] == "7"
    assert by_index[8]["end_share"] == 0.5  # 7 and 7.0 are one answer
    assert by_index[11]["end_answer"] is None
    found = shares(rows)
    assert found == {
        "learnt": 1 / 6, "degraded": 1 / 6, "sharpened": 1 / 6, "kept": 1 / 6, "wrong": 2 / 6
    }  # fmt: skip
    assert sum(found.values()) == pytest.approx(1)


def test_every_pair_has_one_outcome():
    """Restated: right or wrong before and after, and more right completions or not."""
    for before in (False, True):
        for after in (False, True):
            for gain in (-0.25, 0.0, 0.25):
                start = Majority("1", 0.5, before, 0.5)
                found = outcome(start, Majority("1", 0.5, after, 0.5 + gain))
                expected = {
                    (False, True): "learnt",
                    (True, False): "degraded",
                    (False, False): "wrong",
                    (True, True): "sharpened" if gain > 0 else "kept",
                }[before, after]
                assert found == expected


def test_a_majority_by_hand():
    assert majority_of(["9", "4", "4", "9"], [True, False, False, True]).answer == "4"
    assert majority_of([None, None], [False, False]) == Majority(None, 0.0, False, 0.0)


def write(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in made))
    return path


def test_the_command_reads_evaluations_and_predictions(tmp_path, capsys):
    start, end = (write(tmp_path / f"{n}.jsonl", records(n)) for n in (1, 2))
    main([str(start), str(end), "--out", str(tmp_path / "table.csv")])
    assert "wrong       33.3 % of 6 problems" in capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == [row[3] for row in PROBLEMS.values()]
    predicted = [
        {"index": each["index"], "completion": each["completion"]}
        | {"scores": {"gold": float(each["correct"])}}
        for each in records(1)
        if each["kind"] == "sample"
    ]
    halves = predicted[:8], predicted[8:]
    for rank, half in enumerate(halves):
        write(tmp_path / f"completions-{rank:05d}.jsonl", half)
    both = [str(tmp_path / "completions-*.jsonl")] * 2
    main([*both, "--correct", "scores.gold"])
    assert "kept        50.0 %" in capsys.readouterr().out


def test_files_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 problems are in one of the files only"):
        compared({3: Majority("1", 1, True, 1)}, {})
    with pytest.raises(ValueError, match=r"problem 3 has no verdict under 'scores\.gold'"):
        majorities(records(1), "scores.gold")
    with pytest.raises(ValueError, match="there is no file"):
        main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_sharpening_of_the_paper_s_example():
    """0.4 with b = 1, and the line that its logits lie on."""
    p, found = 0.4, [0.4]
    for _ in range(4):
        p = sharpened(p, 1.0)
        found.append(p)
    assert found[1:] == pytest.approx([0.644405, 0.831253, 0.930509, 0.973261], abs=1e-6)
    fit = fit_sharpening(range(6), [*found, 1.0])  # an agreement of 1 is left out
    assert fit.slope == pytest.approx(1.0)
    assert fit.intercept == pytest.approx(math.log(0.4 / 0.6))
    assert fit.r_squared == pytest.approx(1.0)
    assert sharpened(0.3, 0.0) == pytest.approx(0.3)


def test_the_entropy_law_by_hand():
    """a = 0.5, b = 1.2: at entropies 0, log 2 and log 1.4 that is 0.7, 0.2 and 0.5."""
    a, b, fit = fit_entropy_law([0.0, math.log(2), math.log(1.4)], [0.7, 0.2, 0.5])
    assert (a, b) == pytest.approx((0.5, 1.2))
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.residual == pytest.approx(0.0, abs=1e-12)


def test_a_line_by_hand():
    """Points (0, 0), (1, 1), (2, 1): slope 1/2, intercept 1/6, residuals -1/6, 1/3, -1/6."""
    fit = straight_line([0, 1, 2], [0, 1, 1])
    assert (fit.slope, fit.intercept) == pytest.approx((1 / 2, 1 / 6))
    assert fit.r_squared == pytest.approx(1 - (1 / 6) / (2 / 3))
    assert fit.residual == pytest.approx(math.sqrt((1 / 6) / 3))
    assert math.isnan(straight_line([0, 1], [2, 2]).r_squared)
    with pytest.raises(ValueError, match="two different x"):
        straight_line([1, 1], [0, 1])
    with pytest.raises(ValueError, match="all finite"):
        straight_line([0, 1], [0, math.nan])
