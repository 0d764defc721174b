"""The rule that points out the first wrong step of a worked sum, and the table of its study."""

from __future__ import annotations

import pytest

from benchmarks.distil_feedback import STUDY
from benchmarks.distil_study import row
from benchmarks.wrong_step import FirstWrongStep, first_wrong_step
from harness.rollouts import handmade

SUM = "3+4+5="


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("3+4=7;7+5=12####12", None),
        ("3+4+5=12####12", None),
        ("####12", None),
        ("3+4=8;8+5=13####13", "3+4=8"),
        ("3+4=7;7+5=13####13", "7+5=13"),
        ("3+4=7;7+5=12####13", "####13"),  # every equation holds, and the answer does not
        ("3+4=7;8+5=13####13", "####13"),
        ("3+4=;7+5=12####12", "3+4="),
        ("3+4####12", "3+4"),
        ("####", "####"),
        ("3+4=8", None),  # no answer: nothing to say
        ("", None),
    ],
)
def test_the_first_wrong_step(text, step):
    assert first_wrong_step(SUM, text) == step


def test_right_completions_are_told_so_unless_they_should_not_be():
    rollout = handmade(["####12", "####13", "3+4=7", "3+4+5=12####12"], 4, question=[SUM])
    assert FirstWrongStep().feedback(rollout, {}) == ["=", "####13", None, "="]
    assert FirstWrongStep(tells_right=False).feedback(rollout, {}) == [None, "####13", None, None]


def test_the_best_rate_of_each_method_is_judged():
    methods, rates = STUDY.methods, STUDY.rates
    rows = {f"{name}_{rate}": {"accuracy": "0.5"} for name in methods for rate in rates}
    rows["distil_3e-4"]["accuracy"] = "0.6"
    assert STUDY.chosen(rows) == dict.fromkeys(methods, rates[0]) | {"distil": "3e-4"}


def test_a_row_compares_seed_by_seed():
    own = [{"accuracy": 0.5, "pass@8": 1.0}, {"accuracy": 0.7, "pass@8": 0.9}]
    grpo = [{"accuracy": 0.6, "pass@8": 1.0}, {"accuracy": 0.6, "pass@8": 0.8}]
    found = row("1e-4", own, grpo)
    assert found["accuracy"] == "0.6000 (0.1414)"
    assert (found["seeds above grpo, accuracy"], found["seeds above grpo, pass@8"]) == ("1", "1")
    assert (found["rate"], found["seeds"]) == ("1e-4", "2")
