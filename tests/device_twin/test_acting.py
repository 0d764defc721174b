"""Episodes on the twin: places are padded and tokens are read late, and the turns are the CPU's."""

from __future__ import annotations

import pytest
import torch

from harness.decoding import GROUP
from harness.episodes import TERSE, problems, settings_of
from rlif_lightning.environments import pool
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout
from rlif_lightning.rollout import generation
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling


def play(device: str, max_rows: int, thoughts: str) -> Rollout:
    policy = PolicyModel(Policy("rlif-arithmetic")).to(device)
    policy.eos_ids = [*policy.eos_ids, 20]
    policy.tokenizer.chat_template = TERSE
    limits = {"max_turns": 3, "max_turn_tokens": 6, "max_observation_tokens": 100}
    limits["thoughts"] = thoughts
    made = settings_of(template="{observation}", arguments={"wide": 2}, **limits)
    engine = NativeEngine(max_rows)
    engine.setup(policy, 3)
    try:
        prompts = problems(policy, [0, 1, 2, 3], made, chat=thoughts == "fork").to(device)
        return engine.generate(prompts, GROUP, Sampling(2.0, max_new_tokens=14), 0)
    finally:
        engine.discard_ahead()


def test_failures_are_counted_on_the_device(monkeypatch):
    """NCCL has no collective on the CPU's tensors."""
    counted = []

    def noted(values: torch.Tensor) -> torch.Tensor:
        counted.append(values.device.type)
        return values

    monkeypatch.setattr(pool, "all_rank_sum", noted)
    play("cuda", 512, "keep")
    assert counted == ["cuda"]


@pytest.mark.parametrize(("max_rows", "thoughts"), [(5, "keep"), (512, "keep"), (5, "fork")])
def test_episodes_are_the_cpus(monkeypatch, max_rows, thoughts):
    monkeypatch.setattr(generation, "ADMISSIONS", 2)
    expected, found = play("cpu", 512, thoughts), play("cuda", max_rows, thoughts)
    assert expected.turn_ids.max() == 2
    if thoughts == "fork":
        assert expected.context_starts.any()
        assert torch.equal(found.context_starts.cpu(), expected.context_starts)
    assert torch.equal(found.completion_ids.cpu(), expected.completion_ids)
    assert torch.equal(found.turn_ids.cpu(), expected.turn_ids)
    assert found.episodes == expected.episodes
    torch.testing.assert_close(
        found.stats.logprobs.cpu(), expected.stats.logprobs, rtol=1e-4, atol=1e-4
    )
    assert not found.stats.logprobs[~found.mask].any()
