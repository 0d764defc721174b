"""Memory that runs out while completions are drawn: fewer rows at a time, and the same
completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from harness.decoding import GROUP, SAMPLINGS, completions, generate, load, prompts_of
from harness.memory import refused
from harness.runs import ONE, fit, metrics
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats
from rlif_lightning.rollout import native
from rlif_lightning.rollout.native import NativeEngine


def wrong_shape() -> None:
    torch.ones(2).reshape(3)


def accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def short_of_memory(policy: PolicyModel, most: int, fail: Callable[[], None]) -> None:
    """From the third token on the head has no memory for more than ``most`` rows."""
    head, calls = policy.head, []

    def limited(hidden, *weight):
        calls.append(len(hidden))
        if len(hidden) > most and len(calls) > 2 and not torch.is_grad_enabled():
            fail()
        return head(hidden, *weight)

    policy.head = limited


# The mark: a single row without room has the accelerator's error, below.
@pytest.mark.parametrize(
    ("architecture", "fail"),
    [("llama", refused), pytest.param("gemma3", accelerator, marks=pytest.mark.full)],
)
def test_it_is_drawn_again_with_fewer_rows_to_the_same_completions(tiny_models, architecture, fail):
    sampling = SAMPLINGS["hot"]
    plenty = generate(load(tiny_models[architecture]), [0, 1, 2, 3], sampling)
    lower = generate(load(tiny_models[architecture]), [0, 1, 2, 3], sampling, max_rows=GROUP)
    policy = load(tiny_models[architecture])
    engine = NativeEngine()
    engine.setup(policy, seed=7)
    short_of_memory(policy, GROUP, fail)
    with pytest.warns(UserWarning, match="out of memory in a rollout") as told:
        found = engine.generate(prompts_of(policy, [0, 1, 2, 3]), GROUP, sampling, 0)
    ours = [str(warning.message) for warning in told if "out of memory" in str(warning.message)]
    assert [text.partition(" to start")[0].rpartition("=")[2] for text in ours] == ["8", "4"]
    assert engine.max_rows == GROUP
    assert completions(found) == completions(lower) == completions(plenty)
    assert found.texts == plenty.texts
    for field in fields(TokenStats):
        assert torch.equal(getattr(found.stats, field.name), getattr(lower.stats, field.name))
    assert policy.training


def test_a_single_row_without_room_is_told(tiny_models):
    policy = load(tiny_models["llama"])
    engine = NativeEngine(1)
    engine.setup(policy, seed=7)
    short_of_memory(policy, 0, accelerator)
    with pytest.raises(
        RuntimeError, match=r"out of memory in a rollout with a single completion.*max_new_tokens"
    ):
        engine.generate(prompts_of(policy, [0, 1]), GROUP, SAMPLINGS["hot"], 0)


def test_on_several_ranks_no_rank_draws_again_alone(tiny_models, monkeypatch):
    monkeypatch.setattr(native, "num_processes", lambda: 2)
    policy = load(tiny_models["llama"])
    engine = NativeEngine()
    engine.setup(policy, seed=7)
    short_of_memory(policy, GROUP, accelerator)
    with pytest.raises(
        RuntimeError, match=r"one of several processes.*--ckpt_path=last.*max_rows, such as 8"
    ):
        engine.generate(prompts_of(policy, [0, 1, 2, 3]), GROUP, SAMPLINGS["hot"], 0)


def test_other_errors_are_not_taken_for_it(tiny_models):
    policy = load(tiny_models["llama"])
    engine = NativeEngine()
    engine.setup(policy, seed=7)
    short_of_memory(policy, 1, wrong_shape)
    with pytest.raises(RuntimeError, match="shape"):
        engine.generate(prompts_of(policy, [0, 1]), GROUP, SAMPLINGS["hot"], 0)


class ShortEngine(NativeEngine):
    """For whose rollouts memory lasts for 16 rows at a time."""

    def setup(self, policy: PolicyModel, seed: int) -> None:
        super().setup(policy, seed)
        short_of_memory(policy, 16, refused)


@pytest.mark.full  # drawn again with fewer rows: above
def test_a_run_goes_on_as_one_that_began_with_fewer_rows(tmp_path):
    with pytest.warns(UserWarning, match="set model.engine.max_rows=16 to start with it"):
        fit(
            tmp_path / "short",
            "--model.engine=test_rollout_memory.ShortEngine",
            "--trainer.limit_val_batches=0",
            *ONE,
        )
    limited = (
        *ONE,
        "--model.engine=NativeEngine",
        "--model.engine.max_rows=16",
        "--trainer.limit_val_batches=0",
    )
    fit(tmp_path / "limited", *limited)
    assert metrics(tmp_path / "short") == metrics(tmp_path / "limited")
