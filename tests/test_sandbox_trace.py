"""The sandbox's trace as feedback: which tests it may show, what it says, and what it costs."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.distil_code import STUDY
from benchmarks.tiny_functions import (
    PARTS,
    STYLES,
    Function,
    TinyFunctions,
    attempt,
    parts_shown,
)
from callbacks.sandbox_trace import SandboxTrace
from harness.files import ROOT
from harness.programs import PATIENT, SANDBOX
from harness.python_runs import Run, data, module
from harness.rollouts import handmade
from rlif_lightning import CodeTests, DistIL, Sampling, Teacher
from rlif_lightning.answers.code_verdicts import judge_code
from rlif_lightning.learning.feedback import feedback_texts
from rlif_lightning.sandbox import pool
from rlif_lightning.sandbox.pool import Sandbox, Trial

TESTS = ["assert f(0) == 3", "assert f(1) == 5"]
CASES: dict[str, Any] = {
    "public_test_cases": json.dumps([{"input": "0", "output": "3"}]),
    "private_test_cases": json.dumps([{"input": "7", "output": "17"}]),
    "metadata": '{"func_name": "f"}',
}


def test_a_trace_shows_the_first_failed_test_and_that_all_pass():
    texts = ["def f(x): return 2*x+3", "def f(x): return x+3", "def f(x):\n return z", "def f(x)\n"]
    rollout = handmade([*texts, ""], 5, test_list=[TESTS], answer=["secret"])
    writer = SandboxTrace(sandbox=SANDBOX)
    assert feedback_texts(Teacher("callback"), rollout, {}, None, writer) == [
        "all tests pass",
        "assert f(1) == 5\nf(1) returned 4",
        "assert f(0) == 3\nf(0) raised NameError in line 2",
        "the code raised SyntaxError in line 1",
        "there is no code",
    ]


def test_tests_of_other_columns_are_neither_run_nor_shown():
    """The public test passes, and the private one fails."""
    rollout = handmade(["def f(x): return 3", "def f(x): return {'a': x}"], 2, **_columns(CASES))
    public = [name for name in CASES if name != "private_test_cases"]
    for columns, expected in (
        (public, ["all tests pass", 'f(0) returned {"dict": [["a", 0]]}, not 3']),
        (list(CASES), ["f(7) returned 3, not 17", 'f(0) returned {"dict": [["a", 0]]}, not 3']),
    ):
        writer = SandboxTrace(columns, sandbox=SANDBOX)
        assert feedback_texts(Teacher("callback"), rollout, {}, None, writer) == expected
    assert CodeTests(sandbox=SANDBOX)(rollout).scores.tolist() == [0.5, 0.0]


def _columns(row: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, value in row.items()}


def test_traces_of_programs():
    row = {"public_test_cases": [{"input": "3\n", "output": "4\n"}]}
    codes = ["print(int(input()) + 1)", "print(input())", "1\n1 / 0"]
    assert judge_code(codes, [row] * 3, sandbox=SANDBOX) == [
        (1.0, ""),
        (0.0, "input '3\\n' printed \"3\\n\", not '4\\n'"),
        (0.0, "input '3\\n' raised ZeroDivisionError in line 2, not '4\\n'"),
    ]
    quick = Sandbox(isolation="rlimits+", call_seconds=0.5)
    said = "input '3\\n' gave no answer: timeout, not '4\\n'"
    assert judge_code(["while 1: pass"], [row], sandbox=quick) == [(0.0, said)]


def _taught(tmp_path: Path, rows: list[dict[str, Any]]) -> Run:
    teacher = Teacher("callback", template="{feedback} {prompt}", top_k=5)
    learner = module(objective=DistIL(teacher=teacher), sampling=Sampling(max_new_tokens=4))
    problems = data(source=rows, answer_column=None, group_size=2, prompts_per_rollout=4)
    return Run(tmp_path, 1, learner, problems, SandboxTrace(sandbox=SANDBOX))


def test_problems_without_tests_in_the_columns_are_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"columns=\['test_list', .* row 0: no tests in a row"):
        _taught(tmp_path, [{"question": "1+2=", "answer": "3"}] * 4)


@pytest.mark.slow
def test_a_run_reads_the_trace_of_every_completion(tmp_path):
    rows = [{"question": f"{number}+4=", "test_list": TESTS} for number in range(4)]
    figures = _taught(tmp_path, rows).trainer.callback_metrics
    assert float(figures["teacher/coverage"]) == 1
    assert float(figures["teacher/divergence"]) > 0


def test_a_whole_verdict_is_remembered_and_a_timeout_is_not(monkeypatch):
    started = []
    start = Sandbox._start_pair
    monkeypatch.setattr(pool, "_REMEMBERED", {})
    monkeypatch.setattr(pool, "MAX_REMEMBERED", 2)
    monkeypatch.setattr(
        Sandbox, "_start_pair", lambda self, stack: started.append(0) or start(self, stack)
    )
    sandbox = Sandbox(isolation="rlimits+", workers=1, **PATIENT)
    quick = Sandbox(isolation="rlimits+", wall_seconds=1, call_seconds=0.5)
    codes = ["def f(x): return 3", "def f(x): return 2*x+3", "while 1: pass", "1 / 0"]
    trials = [Trial(code, "", tuple(TESTS), ("f",)) for code in codes]
    first = sandbox.verdicts(trials[:2])
    assert first == sandbox.verdicts(trials[:2])
    assert len(started) == 2
    quick.verdicts(trials[2:3] * 2)
    quick.verdicts(trials[2:3])
    assert len(started) == 4
    other = Sandbox(isolation="rlimits+", **PATIENT | {"call_seconds": 31})
    other.verdicts(trials[:1])
    assert len(started) == 5
    assert len(pool._REMEMBERED) == 2
    assert sandbox.verdicts(trials[3:])[0].trace == "the code raised ZeroDivisionError in line 1"


def test_the_tasks_of_the_study_are_solved_by_every_style_and_shared_by_no_split():
    source = TinyFunctions(size=60, validation_size=20)
    splits = {name: source.load(name) for name in ("train", "validation")}
    questions = {name: set(rows["question"]) for name, rows in splits.items()}
    assert [len(each) for each in questions.values()] == [60, 20]
    assert not questions["train"] & questions["validation"]
    for task in (Function(2, 3), Function(4, 11, 7)):
        for style in STYLES.values():
            space: dict[str, Any] = {}
            exec(style.write(task), space)
            assert [space["f"](x) for x in range(12)] == [task(x) for x in range(12)]
    assert Function(2, 3, 7).tests() == ["assert f(0) == 3", "assert f(1) == 5", "assert f(9) == 7"]


def test_a_second_try_has_right_what_the_trace_shows():
    task, rng = Function(2, 3, 7), random.Random(0)
    tried = Function(2, 4, 8)
    assert parts_shown(task, tried) == ["colon", "name", "offset"]
    assert parts_shown(task, task) == list(PARTS)
    style = STYLES["expression"]
    tries = [attempt(task, style, rng, parts_shown(task, tried)) for _ in range(200)]
    assert {each.offset for each in tries} == {3}
    assert {each.factor for each in tries} == {1, 2, 3}
    assert {each.constant for each in tries} == {6, 7, 8}


def test_the_script_says_what_the_sandbox_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_code_model as script

    tokenizer, rng = script.build_tokenizer(), random.Random(3)
    tasks = [Function(2, 3), Function(2, 3, 7)]
    tries = [attempt(task, STYLES["expression"], rng) for task in tasks * 2]
    tries += [Function(2, 3, name="z"), Function(2, 3, 7, colon=""), Function(2, 3, 8)]
    tasks = tasks * 2 + [Function(2, 3), Function(2, 3, 7), Function(2, 3, 7)]
    for style in STYLES.values():
        codes = [style.write(each) for each in tries]
        rows = [{"test_list": task.tests()} for task in tasks]
        said = [trace or script.ALL_PASS for _, trace in judge_code(codes, rows, sandbox=SANDBOX)]
        own = [
            script.trace_of(*each) for each in zip(codes, map(Function.tests, tasks), strict=True)
        ]
        assert said == own
        for text in (*said, *codes, *map(Function.question, tasks)):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    sys.modules.pop("make_code_model")


def test_the_arms_of_the_study_differ_in_the_objective_alone():
    assert list(STUDY.methods) == ["grpo", "distil_local", "distil"]
    local, whole = (STUDY.methods[name] for name in ("distil_local", "distil"))
    assert [each.replace('"local"', '"sequence"') for each in local] == whole
