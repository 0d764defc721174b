"""Answer checking where graders differ: the right verdict on each listed pair, and hostile texts
within a second.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from rlif_lightning.answers.final_answers import equivalent, normalise

ROOT = Path(__file__).parents[1]
ROWS = [
    json.loads(line)
    for line in (ROOT / "tests" / "data" / "answer_disagreements.jsonl").read_text().splitlines()
]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ, COMPARE = script("fuzz_answers"), script("compare_answers")
PAIRS = script("answer_pairs")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['gold']} ~ {row['answer']}")
def test_the_right_verdict_both_ways(row):
    assert equivalent(row["gold"], row["answer"]) is row["right"], row["why"]
    assert equivalent(row["answer"], row["gold"]) is row["right"], row["why"]


def test_most_listed_pairs_are_disagreements():
    assert sum(row["right"] != row["math_verify"] for row in ROWS) >= 12
    assert all(row["why"] for row in ROWS)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in PAIRS.KINDS])
def test_pairs_made_to_be_equal_are_and_others_are_not(kind):
    chosen = [pair for pair in PAIRS.pairs(170, seed=5) if pair.kind == _kind(kind)]
    wrong = [pair for pair in chosen if equivalent(pair.gold, pair.answer) != pair.equal]
    assert len(chosen) >= 5
    assert not wrong


def _kind(name: str) -> str:
    import random

    return getattr(PAIRS, name)(random.Random(0)).kind


@pytest.mark.parametrize(
    ("gold", "answer", "gsm8k", "math"),
    [
        ("1234", "1,234", True, False),
        ("1234", "$1,234", True, False),
        ("18", "18.0", False, False),
        (r"\frac{1}{2}", "1/2", False, True),
        (r"\frac{1}{2}", r"\dfrac12", False, True),
        (r"2\text{ cm}", "2", True, True),
        ("x=5", "5", True, True),
    ],
)
def test_the_published_rules_as_restated(gold, answer, gsm8k, math):
    """Worked by hand from their descriptions."""
    if gsm8k or "frac" not in gold:
        assert COMPARE.gsm8k_says(gold, answer) is gsm8k
    assert COMPARE.math_says(gold, answer) is math


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r"5\text{ dollars}", "5 dollars"),
        (r"$1,200 \mathrm{m/s}$", "1200 m/s"),
        (r"12\text{ cm}^2", "12 cm^2"),
        (r"\dfrac{3}{4}\text{ hours}", r"\frac{3}{4} hours"),
        (r"5\text{ million}", "5 million"),
        (r"10\text{ am}", "10 am"),
        (r"3\text{ or }4", "3 or 4"),
        (r"\text{(A)}", "A"),
        ("( B )", "B"),
        ("(x)", "(x)"),
        ("(A,B)", "(A,B)"),
    ],
)
def test_units_stay_and_choices_are_normalised(answer, normal):
    assert normalise(answer) == normal
    assert normalise(normal) == normal


@settings(max_examples=60, deadline=None)
@given(FUZZ.TEXTS)
def test_hostile_texts_take_no_second_and_raise_nothing(text):
    FUZZ.check(text)
