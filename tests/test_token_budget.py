"""Memory that really runs out: the mini-batch is done again in smaller passes, to the same
numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from harness.memory import refused
from harness.runs import ONE, assert_same, fit, metrics, parameters
from rlif_lightning import cli
from rlif_lightning.learning import token_budget
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.model.out_of_memory import is_out_of_memory


class Greedy(Callback):
    """A policy whose passes over more than ``most`` tokens ask for memory that the allocator
    refuses.
    """

    def __init__(self, most: int):
        self.most = most

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.policy.register_forward_hook(self._ask)

    def _ask(self, policy: Any, arguments: Any, stats: Any) -> None:
        if len(arguments[0].input_ids) > self.most and torch.is_grad_enabled():
            stats.logprobs.sum().backward(retain_graph=True)  # what a failed pass may leave behind
            refused()


def asked(tokens: int, most: int, seen: list[int]) -> int:
    seen.append(tokens)
    if tokens > most:
        refused()
    return tokens


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^micro_batch_tokens=0 must be at least 1$"):
        TokenBudget(0)


@pytest.mark.slow
def test_the_budget_is_halved_until_there_is_room():
    budget, seen, undone = TokenBudget(100), [], []
    with pytest.warns(UserWarning, match="out of memory") as told:
        assert budget.run(lambda tokens: asked(tokens, 30, seen), lambda: undone.append(1)) == 25
    assert [str(warning.message).partition("set ")[2].partition(" to")[0] for warning in told] == [
        "model.update.micro_batch_tokens=50",
        "model.update.micro_batch_tokens=25",
    ]
    assert (seen, len(undone)) == ([100, 50, 25], 2)
    assert budget.run(lambda tokens: asked(tokens, 30, seen)) == 25  # and stays there


@pytest.mark.filterwarnings("ignore:out of memory")
def test_with_nothing_left_to_halve_it_is_told():
    with pytest.raises(RuntimeError, match="out of memory with a single completion"):
        TokenBudget(100).run(lambda tokens: asked(tokens, 0, []))


def test_on_several_ranks_no_rank_repeats_alone(monkeypatch):
    monkeypatch.setattr(token_budget, "num_processes", lambda: 2)
    with pytest.raises(
        RuntimeError, match=r"100 tokens on one of several processes.*--ckpt_path=last"
    ):
        TokenBudget(100).run(lambda tokens: asked(tokens, 30, []))


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shape") as info:
        TokenBudget(100).run(lambda tokens: torch.ones(2).reshape(3))
    assert not is_out_of_memory(info.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:out of memory")
def test_the_present_budget_travels_in_checkpoints_unless_another_is_configured():
    budget = TokenBudget(100)
    budget.run(lambda tokens: asked(tokens, 30, []))
    again, other = TokenBudget(100), TokenBudget(60)
    again.load_state_dict(budget.state_dict())
    other.load_state_dict(budget.state_dict())
    assert (again.tokens, other.tokens) == (25, 60)


def greedy(folder: Path, most: int, budget: int) -> cli.RLIFCLI:
    callback = (
        '--trainer.callbacks+={"class_path": "test_token_budget.Greedy", "init_args":'
        ' {"most":'
        f" {most}}}}}"
    )
    given = [*ONE, "--trainer.limit_val_batches=0", f"--model.update.micro_batch_tokens={budget}"]
    return fit(folder, callback, *given)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_run_that_ran_out_is_the_run_with_the_smaller_budget(tmp_path):
    ran_out, small = greedy(tmp_path / "out", 100, 400), greedy(tmp_path / "small", 10**6, 100)
    assert_same(parameters(ran_out), parameters(small))
    left, right = metrics(tmp_path / "out"), metrics(tmp_path / "small")
    assert left == right
    assert {row["update/micro_batch_tokens"] for row in left} == {"100.0"}
