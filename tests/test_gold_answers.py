"""Gold answers as people have them: what is an answer, what cannot be read, and what setup says
about a column.
"""

from __future__ import annotations

import datetime
import decimal
import re

import numpy as np
import pytest

from rlif_lightning.answers.checkers import AnswerChecker, CodeChecker, LiteralChecker
from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.answers.gold_answers import MAX_READ, GoldReader, gold_texts, is_right
from rlif_lightning.sandbox.pool import Sandbox


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("33", ["33"]),
        (33, ["33"]),
        (33.0, ["33"]),
        (-1e22, ["-10000000000000000000000"]),
        (1e-05, ["0.00001"]),
        (0.1, ["0.1"]),
        (100.0, ["100"]),
        (decimal.Decimal("2.50"), ["2.5"]),
        (np.float32(0.5), ["0.5"]),
        (np.int64(7), ["7"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (["1/2", 0.5], ["1/2", "0.5"]),
        (("A", np.int64(2)), ["A", "2"]),
        (" \n", [" \n"]),
    ],
)
def test_values_that_are_answers(value, texts):
    assert gold_texts(value) == texts


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            None,
            "is None (NoneType), not an answer: leave such rows out, or set"
            " data.answer_column=null",
        ),
        (float("nan"), "is nan (float), not an answer: leave such rows out"),
        (float("inf"), "is inf (float), not an answer"),
        (decimal.Decimal("NaN"), "not an answer: leave such rows out"),
        (
            {"style": "rule", "truth": "1"},
            "name one of ['style', 'truth'] by a dotted path, as in reward_model.",
        ),
        (True, "is True (bool), not an answer: write the word that is right"),
        (np.bool_(False), "is False (bool)"),
        (b"7", "is b'7' (bytes), not an answer: write it as a text"),
        (
            datetime.date(2020, 1, 2),
            "(date), not an answer: the reader of JSON takes such a text for a date",
        ),
        ([], "is an empty list"),
        ([None], "is None (NoneType)"),
        ([["1"]], "is ['1'] (list), not an answer: a list holds texts and numbers"),
    ],
)
def test_values_that_are_no_answers(value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        gold_texts(value)


def test_a_huge_value_makes_a_short_message():
    with pytest.raises(ValueError, match="by a dotted path") as info:
        gold_texts({"x" * 10**6: 1})
    assert len(str(info.value)) < 600


def check(values, kind="text") -> str | None:
    return GoldReader(AnswerExtractor(kind)).check(
        "data.answer_column='a'", enumerate(values), "the train split"
    )


def test_setup_names_the_row_of_what_is_no_answer():
    with pytest.raises(
        ValueError, match=r"data.answer_column='a': row 2 of the train split is None \(NoneType\)"
    ):
        check(["1", "2", None])
    with pytest.raises(
        ValueError, match=f"row {MAX_READ + 5} of the train split is nan"
    ):  # types are checked to the end
        check(["1"] * (MAX_READ + 5) + [float("nan")])


def test_setup_counts_what_cannot_be_read_in_one_line():
    cut = [r"\frac{\sqrt{5", r"\begin{pmatrix", r"\left( 0, \frac{1}{2}", r"\frac{1"]
    whole = [
        r"\frac{\sqrt{5}}{2}",
        r"\{1, 2\}",
        r"\left\{ x \right.",
        r"[2, 5)",
        "}",
        r"a \rightarrow b",
        "x" * 5000,
    ]
    told = check([*whole, *cut, "1"])
    assert told == (
        "4 of 12 gold answers of data.answer_column='a' in the train split cannot be read (cut"
        " off, or no answer in"
        r" them), so hardly any completion is right there: rows 7 '\\frac{\\sqrt{5', 8"
        r" '\\begin{pmatrix',"
        r" 9 '\\left( 0, \\frac{1}{2}', ..."
    )
    assert check(whole) is None
    assert check([["1", r"\frac{1"], "2"]) is None  # one of its answers can be read
    told = check(["#### 1", "#### 2", "no mark"], "hash")
    assert told.startswith("1 of 3 gold answers")
    assert told.endswith("rows 2 'no mark'")


def test_an_extractor_that_finds_nothing_in_most_rows_is_refused():
    with pytest.raises(
        ValueError, match=r"gold_extractor='boxed' finds no answer in 3 of 4 .*row 0 '1'"
    ):
        check(["1", "2", "3", r"\boxed{4}"], "boxed")


SOLUTIONS = {
    "hash": "Tom has 3+4=<<3+4=7>>7 apples.\n#### 7",
    "boxed": r"We have $3^2=9$, so the answer is $\boxed{9}$.",
    "tag": "<think>3+4</think> <answer>7</answer>",
}


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_worked_solutions_that_would_be_taken_whole_are_refused(kind):
    column = ["1", *[SOLUTIONS[kind]] * 2]
    with pytest.raises(ValueError, match=f"worked solutions, such as row 1 .*kind={kind}"):
        check(column)
    assert check([*column, *["1"] * 2]) is None  # not most of them
    assert check([SOLUTIONS[kind]] * 3, kind) is None
    assert check([["7", SOLUTIONS[kind]]] * 3) is None  # one of its answers can be right


def test_an_answer_that_is_a_box_is_taken_whole():
    assert check([r"$\boxed{9}$", r"\boxed{5} \text{ apples}"]) is None


def test_one_acceptable_answer_is_enough():
    assert is_right("0.5", ["7", "1/2"])
    assert not is_right("8", ["7", "1/2"])
    assert not is_right(None, ["7"])
    assert not is_right("7", [])


def test_every_checker_reads_its_own_kind_of_column():
    rows = [(3, None)]
    with pytest.raises(
        ValueError, match=r"data.answer_column='a': row 3 of the test split is None"
    ):
        AnswerChecker().check_gold("a", rows, "the test split")
    with pytest.raises(
        ValueError, match=r"data.answer_column='a': row 3 of the test split is None"
    ):
        LiteralChecker().check_gold("a", rows, "the test split")
    assert LiteralChecker().check_gold("a", [(0, "[1, 2]"), (1, "None")], "the test split") is None
    code = CodeChecker(sandbox=Sandbox("rlimits+"))
    assert code.check_gold("test_list", [(0, ["assert f(1) == 2"])], "the test split") is None
    with pytest.raises(ValueError, match=r"data.answer_column='a' holds no tests"):
        code.check_gold("a", rows, "the test split")


def test_a_list_is_judged_by_its_items():
    problems = [{"a": ["12", "twelve"]}, {"a": 12.0}, {"a": ["7"]}]
    assert AnswerChecker().correct(["twelve", "12", "12"], problems, "a") == [True, True, False]
