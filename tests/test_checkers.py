"""Checkers: literals compared without running anything, and clusters of equal strings."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.answers.checkers import AnswerChecker, CodeChecker, LiteralChecker
from rlif_lightning.answers.code_tasks import CodeExtractor
from rlif_lightning.sandbox.pool import Sandbox


def literal(text: str) -> str | None:
    return LiteralChecker().answer(f"so [ANSWER]{text}[/ANSWER]")


def judged(text: str, gold: str) -> bool:
    checker = LiteralChecker()
    return checker.correct(
        [checker.answer(f"[ANSWER]{text}[/ANSWER]")], [{"output": gold}], "output"
    )[0]


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("[(4, 1), (2, 3)]", "[(4,1),(2,3)]", True),
        ("[[4, 1]]", "[(4, 1)]", False),
        ('"it\'s"', "'it\\'s'", True),
        ("'1'", "1", False),
        ("1.0", "1", True),
        ("True", "1", True),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}", True),
        ("{3, 1, 2}", "{1, 2, 3}", True),
        ("set()", "{}", False),
        ("-3", "- 3", True),
        ("assert f('x == y', 2) == 'x'", "'x'", True),  # the first == is inside the call
        ("assert f('x == y', 2) == 'z'", "'x'", False),
        ("assert f(2) == 'x == y'", "'x == y'", True),
        ("assert f(2) == 'x == y'", "'y'", False),
        ("assert f('xy', 2) == 'x'", "'x'", True),
        ("f(3) == [1,\n 2]", "[1, 2]", True),
        ("None", "None", True),
        ("''", "''", True),
        ("", "''", False),
        ("x", "'x'", False),
        ("[1, 2", "[1, 2]", False),
        ("len('ab')", "2", False),
        ("1+1", "2", False),
    ],
)
def test_literals(text, gold, right):
    assert judged(text, gold) is right


def test_the_last_tag_counts_and_no_tag_is_no_answer():
    checker = LiteralChecker()
    assert checker.answer("[ANSWER]1[/ANSWER] no, [ANSWER]2[/ANSWER]") == "2"
    assert checker.answer("2") is None


def test_equal_literals_have_one_spelling_whatever_the_hash_order():
    assert repr({0, 8}) != repr({8, 0})  # they collide, so that Python shows them as they came
    assert literal("{0, 8}") == literal("{8, 0}") == "{0, 8}"
    assert literal("{'b', 'a', 'c'}") == "{'a', 'b', 'c'}"
    assert literal("{'b': {2, 1}, 'a': ()}") == "{'a': (), 'b': {1, 2}}"
    assert literal("(1,)") == "(1,)"


def test_clusters_of_literals_count_by_frequency_then_alphabet():
    checker = LiteralChecker()
    answers = ["2", "1", None, "1", "3"]
    assert checker.cluster(answers) == ([1, 0, None, 0, 2], ["1", "2", "3"])


@pytest.mark.parametrize("gold", ["", "f(3)", "[1"])
def test_a_gold_answer_that_is_no_literal_is_an_error(gold):
    with pytest.raises(ValueError, match="is no Python literal"):
        judged("1", gold)


TRAPS = [
    "(" * 3000,
    "[" * 199 + "]" * 199,
    "-" * 4000 + "1",
    "9" * 4096,
    "0x" + "f" * 4000,
    "not " * 1000,
    "\0",
    "'\\x'",
]


@pytest.mark.parametrize(
    "trap", [*TRAPS, "__import__('os').system('touch /tmp/never')", "9**9**9**9", "1" * 100_000]
)
def test_traps_are_no_literals_or_themselves_and_nothing_runs(trap):
    answer = literal(trap)
    assert answer is None or judged(trap, answer)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="0123456789[](){}',:-+.ej \\nNoneTrue", max_size=60))
def test_any_text_is_judged_without_an_error(text):
    answer = literal(text)
    if answer is not None and "nan" not in answer:
        assert judged(text, answer)
        assert literal(answer) == answer


def test_answers_are_judged_with_the_gold_extractor_and_clustered_by_meaning():
    checker = AnswerChecker()
    assert checker.correct(["1/2", None, "3"], [{"a": "0.5"}, {"a": "1"}, {"a": 3}], "a") == [
        True,
        False,
        True,
    ]
    assert checker.cluster(["1/2", "0.5", "3", None])[0] == [0, 0, 1, None]


MBPP = {"test_list": ["assert double(1) == 2", "assert double(2) == 4"]}
# The strongest sandbox of the machine, whatever it is.
CODE = CodeChecker(sandbox=Sandbox("rlimits+"))


def test_code_is_right_if_it_passes_every_test_and_no_answer_is_wrong():
    texts = [
        "```\ndef double(x): return 2 * x\n```",
        "def double(x): return 2",
        "def double(",
        " \n",
        "",
    ]
    answers = [CODE.answer(text) for text in texts]
    assert answers == [*texts[:3], None, None]
    assert CODE.correct(answers, [MBPP] * 5, "test_list") == [True, False, False, False, False]


def test_code_is_extracted_as_set_and_may_continue_its_own_prompt():
    prompts = ["def twice(x):\n", "def twice(x):\n    x = x + 1\n"]
    rows = [
        {"prompt": prompt, "entry_point": "twice", "test": "def check(f):\n    assert f(2) == 4\n"}
        for prompt in prompts
    ]
    assert CODE.correct(["    return 2 * x"] * 2, rows, "test") == [True, False]
    fenced = CodeChecker(CodeExtractor("fenced"), Sandbox("rlimits+"))
    assert fenced.correct(["    return 2 * x"], rows[:1], "test") == [False]


def test_code_is_grouped_by_its_text_alone():
    assert CODE.cluster(["b", "a", None, "b"]) == ([0, 1, None, 0], ["b", "a"])


def test_a_column_without_tests_is_an_error():
    with pytest.raises(
        ValueError, match=r"data\.answer_column='code' holds no tests; choose one of"
    ):
        CODE.correct(["x"], [MBPP | {"code": "x"}], "code")
    with pytest.raises(ValueError, match="no tests in a row"):
        CODE.correct(["x"], [{"test": ""}], "test")


def test_packed_private_tests_are_read_and_a_bomb_is_refused_without_running(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    def row(content: object) -> dict[str, str]:
        private = base64.b64encode(zlib.compress(pickle.dumps(content))).decode()
        return {
            "public_test_cases": json.dumps([{"input": "1", "output": "1"}]),
            "private_test_cases": private,
        }

    good = row(json.dumps([{"input": "2", "output": "2"}]))
    assert CODE.correct(["print(input())", "print(1)"], [good, good], "private_test_cases") == [
        True,
        False,
    ]
    for bomb in (Bomb(), [Bomb(), "[]"]):
        with pytest.raises(ValueError, match="neither JSON nor LiveCodeBench's packed form"):
            CODE.correct(["print(input())"], [row(bomb)], "private_test_cases")
    assert not (tmp_path / "touched").exists()
