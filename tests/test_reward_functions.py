"""Plain functions as rewards: what they are given, what they may return, and what they may not see.

TRL's own functions run in the last test, where TRL is installed.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from harness.python_runs import data
from harness.rollouts import handmade
from harness.runs import ONE, fit
from rlif_lightning import RewardFunction, WeightedReward
from rlif_lightning.evaluation.completion_rows import completion_records
from rlif_lightning.evaluation.evaluator import Evaluation, Evaluator
from rlif_lightning.evaluation.label_checks import check_labels
from rlif_lightning.records import Prompts, RewardOutput, Rollout
from rlif_lightning.rewards import RewardSet
from rlif_lightning.rewards.given import as_rewards

TEXTS = ["a 1", "b 2", "c 3", "d 4"]  # of two problems


def rollout_of(texts: list[str] = TEXTS, messages: Any = None, **columns: list) -> Rollout:
    made = handmade(texts, 2, **columns)
    return replace(made, prompts=replace(made.prompts, messages=messages))


def ask(function: Any, rollout: Rollout | None = None, **settings: Any) -> RewardOutput:
    """What a set with this function makes of a rollout."""
    rewards = as_rewards({"mine": RewardFunction(function, **settings)})
    return RewardSet(rewards)(rollout_of() if rollout is None else rollout)["mine"]


def test_a_function_is_given_what_trl_gives():
    seen: dict[str, Any] = {}

    def function(prompts, completions, completion_ids, level, log_extra, log_metric):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, level=level)
        log_extra("first", [text[0] for text in completions])
        log_metric("mine/size", 1.0)
        log_metric("mine/size", 2.0)
        return [1.0, None, 3, True]

    rollout = rollout_of(level=["easy", "hard"])
    output = ask(function, rollout)
    assert seen["prompts"] == ["problem 0", "problem 0", "problem 1", "problem 1"]
    assert seen["completions"] == TEXTS
    assert seen["ids"] == [[5], [5, 5], [5, 5, 5], [5]]  # without padding
    assert seen["level"] == ["easy", "easy", "hard", "hard"]
    assert output.scores.tolist() == pytest.approx([1.0, math.nan, 3.0, 1.0], nan_ok=True)
    assert output.log == {"mine/size": 1.5}
    records = completion_records(rollout, {"mine": output})
    assert [record["extra"]["mine"]["first"] for record in records] == ["a", "b", "c", "d"]
    assert "extra" not in completion_records(rollout, {"mine": RewardOutput(output.scores)})[0]


def contents(completions: list[list[dict[str, str]]], prompts, **kwargs) -> list[float | None]:
    assert [prompt[-1]["role"] for prompt in prompts] == ["user"] * 4
    return [float(completion[0]["content"][-1]) for completion in completions]


def plain(completions: list[str], **kwargs) -> list[float]:
    return [float(text[-1]) for text in completions]


def unsaid(completions, **kwargs):
    assert {len(completion) for completion in completions} == {1}
    return [float(completion[0]["content"][-1]) for completion in completions]


def test_completions_are_messages_where_prompts_or_the_function_say_so():
    chats = [[{"role": "user", "content": f"problem {p}"}] for p in range(2)]
    expected = [1.0, 2.0, 3.0, 4.0]
    assert ask(contents).scores.tolist() == expected
    assert ask(contents, rollout_of(messages=chats)).scores.tolist() == expected
    assert ask(plain, rollout_of(messages=chats)).scores.tolist() == expected
    assert ask(unsaid, rollout_of(messages=chats)).scores.tolist() == expected
    assert ask(lambda completions: [float(c[-1]) for c in completions]).scores.tolist() == expected


class Callable_:
    """A callable object without a name, as TRL's factories return."""

    def __call__(self, completion_ids: list[list[int]], **kwargs) -> list[float]:
        return [-float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize(
    "function", [Callable_(), functools.partial(Callable_()), Callable_().__call__]
)
def test_callable_objects_are_functions(function):
    assert ask(function).scores.tolist() == [-1.0, -2.0, -3.0, -1.0]


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1, 2, 3, 4]),
        np.array([1.0, 2.0, 3.0, 4.0]),
        (1, 2, 3, 4),
        [np.float32(1), torch.tensor(2.0), 3, 4.0],
        [np.bool_(True), np.array(2.0), np.int64(3), 4.0],
        np.array([True, 2.0, 3, 4], dtype=object),
    ],
)
def test_scores_come_as_tensor_array_or_list(scores):
    output = ask(lambda completions: scores)
    assert output.scores.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert output.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (["good"] * 4, "'mine' returned scores of type list with 'good'; a tensor, an array or"),
        ([1.0, 2.0], r"'mine' returned scores of shape \(2,\); one per completion, \(4,\)"),
        (None, "'mine' returned scores of type NoneType"),
        ({"a": 1}, "'mine' returned scores of type dict"),
        (np.array(["x"] * 4), "'mine' returned scores of type <U1"),
    ],
)
def test_what_is_no_score_is_refused_under_the_head_s_name(scores, message):
    with pytest.raises(RuntimeError, match=message):
        ask(lambda completions: scores)


def test_an_array_of_objects_may_hold_none():
    scores = ask(
        lambda completions: np.array([None, 1.0, np.float32(2), True], dtype=object)
    ).scores
    assert scores[0].isnan()
    assert scores[1:].tolist() == [1.0, 2.0, 1.0]


def test_extra_columns_have_a_value_for_each_completion():
    def function(completions, log_extra):
        log_extra("first", ["a"])
        return [0.0] * 4

    with pytest.raises(RuntimeError, match="'mine' returned 1 values in the column 'first'; one"):
        ask(function)


def test_coroutines_run_at_the_same_time_and_inside_of_a_running_loop():
    barrier = threading.Barrier(2, timeout=300)  # passes only if both are there

    async def first(completions, **kwargs):
        await asyncio.to_thread(barrier.wait)
        return [1.0, None, 1.0, 0.0]

    async def second(completions, log_metric, **kwargs):
        await asyncio.to_thread(barrier.wait)
        log_metric("second/calls", 1)
        return [0.0] * 4

    rewards = RewardSet(as_rewards({"a": first, "b": second}))

    async def notebook():
        return rewards(rollout_of())

    outputs = asyncio.run(notebook())
    assert outputs["a"].scores.isnan().tolist() == [False, True, False, False]
    assert outputs["b"].log == {"second/calls": 1.0}

    async def broken(completions):
        raise ZeroDivisionError("no judge")

    with pytest.raises(
        RuntimeError, match=r"'mine' \(RewardFunction\) raised ZeroDivisionError: no"
    ):
        ask(broken)


def by_gold(completions, solution, **kwargs):
    return [float(text.endswith(gold)) for text, gold in zip(completions, solution, strict=True)]


def test_a_gold_column_that_a_function_can_do_without_is_known_as_one():
    def bonus(completions, level, solution=None):
        return [0.0 if solution is None else 1.0] * len(completions)

    head = RewardFunction(bonus, needs_gold=True)
    assert head.gold_columns == ("level", "solution")
    reads = RewardFunction(lambda completions, **kw: [0.0] * 4, columns=["solution"])
    with pytest.raises(ValueError, match="names the column 'solution', which shows the gold"):
        RewardSet(as_rewards({"bonus": head, "reads": reads}))
    problems = data(source=[{"question": "1+1=", "level": 1}] * 4)
    problems.setup("fit")
    check_labels(problems, Evaluator(Evaluation()), RewardSet(as_rewards({"bonus": head})), "fit")


def test_gold_is_read_only_by_functions_that_are_registered_so():
    gold = rollout_of(solution=["1", "3"], answer=["x", "y"])
    with pytest.raises(
        ValueError,
        match=r"by_gold reads gold answers by its parameter 'solution': register it with needs",
    ):
        RewardFunction(by_gold)
    head = RewardFunction(by_gold, needs_gold=True)
    assert head.gold_columns == ("solution",)
    assert ask(by_gold, gold, needs_gold=True).scores.tolist() == [1.0, 0.0, 1.0, 0.0]

    for reads in (
        lambda completions, **kwargs: [float(len(each)) for each in kwargs["solution"]],
        lambda completions, **kwargs: [float(each) for each in kwargs.get("solution", [0] * 4)],
        lambda completions, **kwargs: [float(len(kwargs["solution"]))] * 4,
    ):
        with pytest.raises(
            RuntimeError,
            match=r"'solution' is hidden from a reward function: register the function with"
            r" needs_gold=True .* or with columns=\['solution'\]",
        ):
            ask(reads, gold)
        rewards = {"mine": WeightedReward(RewardFunction(reads, columns=["solution"]))}
        with pytest.raises(ValueError, match="names the column 'solution', which shows the gold"):
            RewardSet(rewards, answer_column="solution")
    level = ask(lambda completions, **kw: kw["level"], rollout_of(level=[1, 2]), columns=["level"])
    assert level.scores.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_an_unknown_keyword_is_the_function_s_own_error():
    with pytest.raises(RuntimeError, match="raised KeyError: 'lvl'"):
        ask(lambda completions, **kwargs: kwargs["lvl"])


def needs_state(completions, trainer_state):
    return []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "no.such.path"}, "function='no.such.path' cannot be imported"),
        ({"function": "math.nothing"}, r"function='math.nothing' cannot be imported \(Attribute"),
        ({"function": "nodots"}, "function='nodots' cannot be imported"),
        ({"function": 7}, "function=7 is no function; pass one"),
        ({"function": needs_state}, "parameter 'trainer_state' cannot be given to a reward head"),
        ({"function": needs_state.__class__}, "is no function"),
        (
            {"function": lambda completions: [], "columns": ["level"]},
            r"columns=\['level'\]: <lambda> has no \*\*kwargs to read them from",
        ),
    ],
)
def test_what_is_no_reward_function_is_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RewardFunction(**settings)


MY_FILE = """
from __future__ import annotations

def digits(completions, **kwargs) -> list[float]:
    return [float(sum(letter.isdigit() for letter in text)) for text in completions]

def right(completions: list[list[dict[str, str]]], answer: list[str], **kwargs):
    ends = [each[0]["content"].rpartition("#")[2] for each in completions]
    return [float(end == gold) for end, gold in zip(ends, answer)]

def by_level(completions, level, **kwargs):
    return [0.0] * len(completions)
"""
HEAD = "{class_path: RewardFunction, init_args: {function: "


@pytest.mark.slow
def test_functions_by_import_path_train(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_functions.py").write_text(MY_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    heads = f"digits: {{head: {HEAD}my_functions.digits}}}}, weight: 0.5}}"
    gold = f"right: {{head: {HEAD}my_functions.right, needs_gold: true}}}}}}"
    run = fit(tmp_path / "run", *ONE, f"--model.rewards={{{heads}, {gold}}}")
    figures = run.trainer.callback_metrics
    assert float(figures["reward/digits/mean"]) > 1
    assert 0 < float(figures["reward/right/mean"]) < 1
    missing = f"{{a: {{head: {HEAD}my_functions.by_level}}}}}}}}"
    with pytest.raises(SystemExit):
        fit(tmp_path / "other", f"--model.rewards={missing}")
    assert "parameter 'level' of function=by_level" in capsys.readouterr().err


def test_prompts_of_a_chat_bring_their_messages():
    index = torch.arange(1)
    chats = [[{"role": "user", "content": "1+1?"}]]
    prompts = Prompts([torch.tensor([1])], ["<user>1+1?"], {"answer": ["2"]}, index, chats)
    assert prompts.only(()).messages == chats
    assert prompts.to("cpu").messages == chats


# The signatures of TRL 1.16's functions, and what they give for two problems.
SOLUTIONS = [r"\boxed{12}", r"\frac{1}{3}"]
ANSWERS = [
    r"<think>5+7</think> It is \boxed{12}",
    r"<think>\boxed{12}</think> It is 11",
    r"It is \boxed{\frac{2}{6}}",
    "nothing",
]


def test_trl_s_own_functions_run_unchanged():
    rewards = pytest.importorskip("trl.rewards", reason="TRL is compared where it is installed")
    rollout = rollout_of(ANSWERS, solution=SOLUTIONS)
    ids, messages = (
        [[5], [5, 5], [5, 5, 5], [5]],
        [[{"role": "assistant", "content": a}] for a in ANSWERS],
    )
    gold = [SOLUTIONS[b // 2] for b in range(4)]
    for name in ("accuracy_reward", "reasoning_accuracy_reward"):
        function = getattr(rewards, name)
        output = ask(function, rollout, needs_gold=True)
        assert output.scores.tolist() == pytest.approx(
            [math.nan if score is None else score for score in function(messages, gold)],
            nan_ok=True,
        )
        assert set(output.columns) == {"solution", "gold_parsed", "answer_parsed"}
        with pytest.raises(ValueError, match="register it with needs_gold"):
            RewardFunction(f"trl.rewards.{name}")
    think = ask("trl.rewards.think_format_reward", rollout).scores.tolist()
    assert think == rewards.think_format_reward(messages) == [1.0, 1.0, 0.0, 0.0]
    for function in (
        rewards.get_soft_overlong_punishment(max_completion_len=3, soft_punish_cache=2),
        rewards.get_repetition_penalty_reward(ngram_size=1),
    ):
        assert ask(function, rollout).scores.tolist() == pytest.approx(function(ids))
    cosine = rewards.get_cosine_scaled_reward(max_len=4)
    found = ask(cosine, rollout, needs_gold=True).scores.tolist()
    assert found == pytest.approx(cosine(messages, gold, ids))
