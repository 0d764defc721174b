"""Code rewards on hand-written rows in the layouts of HumanEval, MBPP and LiveCodeBench, and on
hand-made groups.
"""

from __future__ import annotations

import base64
import json
import keyword
import pickle
import random
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.command_line import base
from harness.programs import PROGRAMS, SANDBOX
from harness.rollouts import handmade
from rlif_lightning import cli
from rlif_lightning.answers.code_inputs import draw_arguments, read_arguments
from rlif_lightning.answers.code_tasks import CodeExtractor, task_of
from rlif_lightning.answers.code_verdicts import pass_rates
from rlif_lightning.answers.final_answers import cluster
from rlif_lightning.rewards import BehaviourVote, CodeTests
from rlif_lightning.rewards.code import behaviour, behaviour_labels
from rlif_lightning.sandbox.pool import Outcome, Run

QUICK = replace(SANDBOX, wall_seconds=2, call_seconds=1)  # where code hangs, or may
HUMANEVAL = {
    "task_id": "X/0",
    "prompt": 'def helper(x):\n    return x + 1\n\n\ndef twice(x: int) -> int:\n    """Twice'
    ' x."""\n',
    "entry_point": "twice",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n"
    "    assert candidate(helper(2)) == 6, 'again'\n    assert abs(candidate(0.5) - 1.0) < 1e-6\n",
}
MBPP = {
    "text": "Write a function to add up a list, and one for its mean.",
    "test_setup_code": "from math import isclose",
    "test_list": [
        "assert total([1, 2]) == 3",
        "assert isclose(mean([1, 2]), 1.5)",
        "assert all(total([n] * k) == n * k for n in range(3) for k in range(3))",
        "assert total([]) == 0",
    ],
}
STDIN = {
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "5 5\n", "output": "10", "testtype": "stdin"}]),
    "metadata": "{}",
}
FUNCTIONAL_CASES = [
    {"input": '[1, 2]\n"a"', "output": '[[1, "a"], [2, "a"]]', "testtype": "functional"},
    {"input": '[]\n"b"', "output": "[]", "testtype": "functional"},
]
FUNCTIONAL = {
    "starter_code": "class Solution:\n    def pairs(self, xs: List[int], y: str):\n",
    "public_test_cases": json.dumps(FUNCTIONAL_CASES[:1]),
    "private_test_cases": base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps(FUNCTIONAL_CASES[1:])))
    ).decode(),
    "metadata": '{"func_name": "pairs"}',
}

TEXTS = {
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "5", "output": '"101"', "testtype": "functional"}]),
    "metadata": '{"func_name": "bits"}',
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "completion", "rate"),
    [
        (HUMANEVAL, "    return helper(x) + x - 1\n", 1),
        (HUMANEVAL, "    return 2 * x\n\ndef main():\n    broken(", 1),  # cut at the margin
        (HUMANEVAL, "```python\ndef twice(x):\n    return x + x\n```", 1),
        (HUMANEVAL, "    return 2 * x + (x == 0.5)\n", 0),
        (HUMANEVAL, "    return None\n", 0),
        (HUMANEVAL, "no code at all", 0),
        (HUMANEVAL, "", 0),
        (MBPP, "```\ndef total(x): return sum(x)\ndef mean(x): return sum(x) / len(x)\n```", 1),
        (MBPP, "def total(x): return sum(x)", 0.75),
        (MBPP, "def total(x): return 3", 0.25),
        (MBPP, "def total(x): return sum(x)\n1 / 0", 0),
        (STDIN, "a, b = map(int, input().split())\nprint(a + b)", 1),
        (STDIN, "print('3.0 ')\nprint()", 0.5),
        (STDIN, "print(3)\n1 / 0", 0),
        (
            FUNCTIONAL,
            "class Solution:\n    def pairs(self, xs, y):\n        return [(x, y) for x in xs]",
            1,
        ),
        (FUNCTIONAL, "def pairs(xs, y): return []", 0.5),
        (FUNCTIONAL, "def pairs(xs, y): return '[]'", 0),
        (TEXTS, "def bits(n): return f'{n:b}'", 1),
        (TEXTS, "def bits(n): return f'{n:04b}'", 0),  # a returned text is no printed number
        (TEXTS, "def bits(n): return f'{n:b}' + chr(10)", 0),
    ],
)
def test_pass_rates(row, completion, rate):
    assert pass_rates([completion], [row], sandbox=SANDBOX) == [rate]


@pytest.mark.slow
def test_an_expected_output_may_be_longer_than_the_sandbox_allows_others():
    row = {"public_test_cases": [{"input": "3000", "output": "1\n" * 3000}]}
    right = "for _ in range(int(input())): print(1, '')"
    sandbox = replace(SANDBOX, output_kb=1)
    assert pass_rates([right], [row], sandbox=sandbox) == [1.0]
    endless = ["while True: print(1)"]
    assert pass_rates(endless, [row], sandbox=replace(QUICK, output_kb=1)) == [0.0]
    call = {"input": "3000", "output": json.dumps([1] * 3000)}
    row = {"public_test_cases": [call], "metadata": '{"func_name": "f"}'}
    assert pass_rates(["def f(n): return [1] * n"], [row], sandbox=sandbox) == [1.0]


def test_rows_of_different_layouts_keep_their_order():
    good = "def total(x): return sum(x)\ndef mean(x): return sum(x) / len(x)"
    rows = [STDIN, MBPP, HUMANEVAL, MBPP]
    assert pass_rates(["print(3)", good, "    return 2 * x", "x"], rows, sandbox=SANDBOX) == [
        0.5,
        1,
        1,
        0,
    ]
    assert pass_rates([], [], sandbox=SANDBOX) == []


def test_the_functions_that_tests_call():
    assert task_of(MBPP).functions == ("mean", "total")
    assert task_of(HUMANEVAL).functions == ("twice",)
    tests = ["import os.path as p\nassert f(p, lambda a: a)[0] == [b for b in g()] and max(1, 2)"]
    assert task_of({"test_list": tests}).functions == ("f", "g")
    assert task_of(FUNCTIONAL).cases == ((([1, 2], "a"), [[1, "a"], [2, "a"]]), (([], "b"), []))


def test_a_packed_test_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    with pytest.raises(ValueError, match="neither JSON nor LiveCodeBench's packed form"):
        task_of({"public_test_cases": packed})
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"no tests in a row with the columns \['question'\]; give test_list"),
        ({"test": "def check(f): pass"}, "column 'test' needs a column 'entry_point'"),
        ({"test_list": ["assert ("]}, "is not Python"),
        ({"public_test_cases": "[]"}, "holds no test"),
        ({"public_test_cases": "!"}, "neither JSON nor"),
        ({"public_test_cases": '[{"input": "3", "output": 3}]'}, r"case \('3', 3\) of a program"),
    ],
)
def test_rows_without_usable_tests(row, message):
    with pytest.raises(ValueError, match=message):
        task_of(row)


@pytest.mark.parametrize(
    ("kind", "text", "prompt", "code"),
    [
        ("auto", "a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\nc", "", "y = 2\n"),
        ("auto", "```python\nx = '```'\n", "", "x = '```'\n"),
        ("auto", "  return 1\n\nprint(2)", "def f():\n", "def f():\n  return 1\n"),
        ("auto", "  return [\n  1\n]\nprint(2)", "def f():\n", "def f():\n  return [\n  1\n]"),
        ("auto", "x = 1\ny = 2", "def f():\n", "x = 1\ny = 2"),
        ("auto", "  x", "", "  x"),
        ("auto", " \n", "def f():\n", None),
        ("auto", "```\n```", "", None),
        ("fenced", "x = 1", "", None),
        ("text", "```\nx\n```", "", "```\nx\n```"),
        ("continuation", "1\nprint(2)", "x = ", "x = 1"),
    ],
)
def test_extraction(kind, text, prompt, code):
    found = CodeExtractor(kind)(text, prompt)
    assert (found or "").strip("\n") == (code or "").strip("\n")
    assert (found is None) == (code is None)
    with pytest.raises(ValueError, match="kind='magic' is unknown"):
        CodeExtractor("magic")


def test_code_tests_as_a_reward():
    texts = [
        "def total(x): return sum(x)",
        "x",
        "def total(x): return sum(x)\ndef mean(x): return 1.5",
        "",
    ]
    rollout = handmade(texts, 2, **{name: [value] * 2 for name, value in MBPP.items()})
    output = CodeTests(sandbox=SANDBOX)(rollout)
    assert output.scores.tolist() == [0.75, 0, 1, 0]
    assert output.log == {"code/solved": 0.25}
    assert CodeTests(credit="all", sandbox=SANDBOX)(rollout).scores.tolist() == [0, 0, 1, 0]
    assert CodeTests.needs_gold
    assert not BehaviourVote.needs_gold
    with pytest.raises(ValueError, match="credit='some' is unknown"):
        CodeTests(credit="some")


def value(content) -> Outcome:
    return Outcome("value", content)


def test_what_counts_as_a_behaviour():
    error, none = Outcome("error", reason="KeyError"), Outcome("none", reason="timeout")
    assert behaviour([value(1), error]) == '[1, {"error": "KeyError"}]'
    assert behaviour([value(1), none]) is None
    assert behaviour([error, error]) is None
    assert behaviour([value(None), value(""), error]) is None
    assert behaviour([value(0)]) == "[0]"
    one, other = ({"set": [{"tuple": [k]} for k in keys]} for keys in ((1, 2), (2, 1)))
    assert behaviour([value(one)]) == behaviour([value(other)])
    one, other = ({"dict": [[k, {"set": [k]}] for k in keys]} for keys in ((1, 2), (2, 1)))
    assert behaviour([value([one])]) == behaviour([value([other])])
    assert behaviour([value([1, 2])]) != behaviour([value([2, 1])])


def test_behaviours_are_clustered_by_value():
    same = ["[0.1]", "[0.10000000001]", "[1]", "[1.0]", "[true]", '["1"]', None, "[[1]]"]
    assert first_rows(behaviour_labels(same, 8, [0])) == [0, 0, 2, 2, 4, 5, None, 7]
    # Another problem's equal behaviour has a label of its own, so that they are counted apart.
    assert first_rows(behaviour_labels(["[1]", "[1]", "[1]", "[2]"], 2, [0, 1])) == [0, 0, 2, 3]
    # The most frequent text stands for its cluster, wherever it comes.
    labels = behaviour_labels(["[1.0000009]", "[1.0]", "[1.0]", "[0.9999991]"], 4, [7])
    assert labels == behaviour_labels(["[1.0]"], 1, [7]) * 4


def test_a_behaviours_label_depends_on_its_problem_and_not_on_its_place():
    alone, third = (
        behaviour_labels(["[1]"], 1, [9]),
        behaviour_labels(["[1]", "[2]", "[1]"], 1, [3, 4, 9]),
    )
    assert third[2:] == alone
    assert third[0] != alone[0]
    # A vote takes labels for answers: two that differ must never be read as one value.
    many = behaviour_labels([f"[{k}]" for k in range(200)], 200, [0])
    assert len(set(cluster(many))) == 200


def first_rows(labels: list[str | None]) -> list[int | None]:
    """The first row of each label."""
    return [None if label is None else labels.index(label) for label in labels]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2 / 3, 2 / 3, 1 / 3, 0]),
        ({"denominator": "group"}, [0.5, 0.5, 0.25, 0]),
        ({"mode": "hard"}, [1, 1, 0, 0]),
        ({"mode": "gated", "entropy_range": (0.0, 0.1)}, [0, 0, 0, 0]),
        ({"min_parseable": 4}, [0, 0, 0, 0]),
    ],
)
def test_behaviour_vote(settings, expected):
    rollout = handmade(PROGRAMS, 4, entry_point=["f"], inputs=[["[3, 1, 2], 2", "[], 1", "[5], 0"]])
    output = BehaviourVote(sandbox=SANDBOX, **settings)(rollout)
    torch.testing.assert_close(output.scores, torch.tensor(expected, dtype=torch.float32))
    assert output.log["rollout/parseable"] == 0.75
    assert output.log["vote/distinct_answers"] == 2


def test_behaviour_vote_reads_the_columns_that_it_is_given():
    """Inputs of the usual name would tell nobody apart; those of `cases` do."""
    named = {"columns": {"function": "task.name", "inputs": "cases"}, "sandbox": SANDBOX}
    assert BehaviourVote(**named).columns == ("task.name", "cases", "prompt")
    given = {"cases": [["[3, 1, 2], 2", "[], 1", "[5], 0"]], "inputs": [["[], 0"]]}
    rollout = handmade(PROGRAMS, 4, task=[{"name": "f"}], **given)
    expected = torch.tensor([2 / 3, 2 / 3, 1 / 3, 0])
    torch.testing.assert_close(BehaviourVote(**named)(rollout).scores, expected)
    with pytest.raises(ValueError, match="'name' is none of function, inputs, header"):
        BehaviourVote(columns={"name": "f"}, sandbox=SANDBOX)


def test_behaviour_vote_of_programs_and_of_drawn_inputs():
    texts = ["print(int(input()) * 2)", "n = int(input())\nprint(n + n)", "print(0)", "pass"]
    programs = handmade(texts, 4, inputs=[["1\n", "3\n"]])
    assert BehaviourVote(sandbox=SANDBOX)(programs).scores.tolist() == pytest.approx(
        [2 / 3, 2 / 3, 1 / 3, 0]
    )
    # As tests compare what is printed: line by line, words apart from spaces, numbers by value.
    texts = ["print(0.1 + 0.2, 'A')", "print(0.3, 'A', '', end='')", "print('0.3\\nA')", "print()"]
    programs = handmade(texts, 4, inputs=[["1\n", "3\n"]])
    assert BehaviourVote(sandbox=SANDBOX)(programs).scores.tolist() == pytest.approx(
        [2 / 3, 2 / 3, 1 / 3, 0]
    )
    header = "from typing import List\n\ndef f(xs: List[int], k: int):\n"
    in_place = "def f(xs, k):\n    xs.sort()\n    return xs[:k]"
    drawn = handmade(
        [PROGRAMS[0], in_place, PROGRAMS[2], "    return sorted(xs)[:k]"],
        4,
        entry_point=["f"],
        prompt=[header],
    )
    # Few of the drawn k lie within the list, and only those tell the third from the others.
    vote = BehaviourVote(num_inputs=32, sandbox=SANDBOX)
    assert vote(drawn).scores.tolist() == pytest.approx([0.75, 0.75, 0.25, 0.75])


def test_behaviour_vote_says_what_it_needs():
    with pytest.raises(
        ValueError, match=r"problem 0 has no inputs .* give a column 'inputs', or 'entry_point' and"
    ):
        BehaviourVote(sandbox=SANDBOX)(handmade(["x"], 1, answer=["1"]))
    with pytest.raises(ValueError, match="num_inputs=0 must be at least 1"):
        BehaviourVote(num_inputs=0)
    with pytest.raises(ValueError, match="mode='loud' is unknown"):
        BehaviourVote(mode="loud")


def test_arguments_are_read_as_in_a_call():
    assert read_arguments("[1, 2], 'a'") == ([1, 2], "a")
    assert read_arguments("") == ()
    assert read_arguments("(1, 2), -3, {4: None}") == ((1, 2), -3, {4: None})
    for text in ("x", "1 +", "a=1", "print()", "1) or (2", "*[1]"):
        with pytest.raises(ValueError, match="must be literals as in a call"):
            read_arguments(text)


HEADER = """
import typing
from typing import Dict, List, Optional, Tuple
def f(self, a: int, b: List[float], c: Dict[str, int], d: Tuple[int, str], e: Optional[bool],
      g: tuple[int, ...],
      h: int | None, i: typing.List[List[str]], j: list, k: set[int]) -> int:
"""


def test_arguments_are_drawn_by_type_and_row():
    rows = draw_arguments(HEADER + "    pass", "f", 50, 0, 7)
    for a, b, c, d, e, g, h, i, j, k in rows:
        assert type(a) is int
        assert all(type(x) is float for x in b)
        assert all(type(x) is str and type(y) is int for x, y in c.items())
        assert (type(d[0]), type(d[1]), len(d)) == (int, str, 2)
        assert e in (None, True, False)
        assert isinstance(g, tuple)
        assert h is None or type(h) is int
        assert all(type(word) is str for words in i for word in words)
        assert all(type(x) is int for x in [*j, *k, *g])
    assert {len(row[1]) for row in rows} == set(range(7))
    assert rows == draw_arguments(HEADER + "    return 1", "f", 50, 0, 7)
    assert rows != draw_arguments(HEADER + "    pass", "f", 50, 0, 8)
    assert rows != draw_arguments(HEADER + "    pass", "f", 50, 1, 7)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x): pass", "'f' has no type for an argument"),
        ("def f(x: Callable[[int], int]): pass", "'f' has 'Callable"),
        ("def g(x: int): pass", "no function 'f'"),
        ("def f(x: int", "cannot be read"),
    ],
)
def test_headers_that_cannot_be_drawn_for(source, message):
    with pytest.raises(ValueError, match=message):
        draw_arguments(source, "f", 1, 0, 0)


def fuzz(count: int, seed: int) -> list[str]:
    """Random text, bytes, words of Python, and a real program with a piece cut out or doubled."""
    rng = random.Random(seed)
    words = [*keyword.kwlist, "f(x)", "len", "1", "'a'", *"x()[]:=+*.,"]
    program = Path(__file__).read_text()
    found = []
    for n in range(count):
        if n % 4 == 0:
            found.append(
                "".join(
                    chr(rng.choice((rng.randrange(128), rng.randrange(0x110000))))
                    for _ in range(40)
                )
            )
        elif n % 4 == 1:
            found.append(rng.randbytes(60).decode("latin-1"))
        elif n % 4 == 2:
            found.append("def f(x):\n return " + " ".join(rng.choices(words, k=rng.randrange(12))))
        else:
            start, length = rng.randrange(len(program)), rng.randrange(400)
            found.append(
                program[start : start + length] + program[start : start + rng.randrange(200)]
            )
    return found


@pytest.mark.slow
def test_random_code_neither_raises_nor_hangs():
    codes = fuzz(80, 0)
    kinds = {row[0].kind for row in QUICK.outcomes([Run(code, "f", ((1,),)) for code in codes])}
    assert "none" in kinds
    QUICK.outcomes([Run(code, None, ("1\n",)) for code in codes[:24]])
    assert sum(pass_rates(codes[:24], [MBPP] * 24, sandbox=QUICK)) == 0
    behaviours = handmade(codes[:24], 8, entry_point=["f"] * 3, inputs=[["1"]] * 3)
    assert BehaviourVote(sandbox=QUICK)(behaviours).scores.isfinite().all()


@pytest.mark.slow
def test_behaviour_vote_trains_through_the_command_line(tmp_path):
    """The embedded model writes digits: one of them after this header is a function of x."""
    row = {
        "question": "3+4+5=",
        "prompt": "def f(x):\n    return x * 1",
        "entry_point": "f",
        "inputs": ["1", "2"],
    }
    row |= {"test_list": ["assert f(1) == 12", "assert f(0) == 0"]}
    path = tmp_path / "rows.jsonl"
    rows = [{**row, "question": f"{n}+4+5="} for n in range(8)] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = json.dumps({"class_path": "LocalFiles", "init_args": {"train": str(path)}})
    settings = {
        "extractor": {"kind": "continuation"},
        "sandbox": {"isolation": "rlimits+", "workers": 2},
    }
    rewards = {
        "vote": {"head": {"class_path": "BehaviourVote", "init_args": settings}},
        "gold": {
            "head": {"class_path": "CodeTests", "init_args": {"sandbox": settings["sandbox"]}},
            "weight": 0.0,
        },
    }
    run = cli.main(
        [
            "fit",
            *base(
                "source",
                "answer_column",
                "rewards",
                "max_new_tokens",
                "compare",
                "certainty",
                "prompts_per_rollout",
            ),
            f"--data.source={source}",
            f"--model.rewards={json.dumps(rewards)}",
            "--model.sampling.max_new_tokens=1",
            "--data.prompts_per_rollout=8",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.limit_val_batches=0",
            "--data.answer_column=null",
            "--compare=false",
        ]
    )
    found = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert int(run.model.num_rollouts) == 2
    assert found["rollout/parseable"] > 0.3
    assert 0 < found["vote/largest_cluster"] <= 1
    assert 0 < found["reward/vote/mean"] <= 1
    assert found["reward/vote/share"] == 1
    assert 0 <= found["code/solved"] <= 1
