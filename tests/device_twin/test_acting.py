"""Episodes on the twin: places are padded and tokens are read late, and the turns are the CPU's."""

from __future__ import annotations

import pytest
import torch

from harness.decoding import GROUP
from harness.episodes import problems, settings_of
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout
from rlif_lightning.rollout import generation
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling


def play(device: str, max_rows: int) -> Rollout:
    policy = PolicyModel(Policy("rlif-arithmetic")).to(device)
    policy.eos_ids = [*policy.eos_ids, 20]
    limits = {"max_turns": 3, "max_turn_tokens": 6, "max_observation_tokens": 60}
    made = settings_of(template="{observation}", arguments={"wide": 2}, **limits)
    engine = NativeEngine(max_rows)
    engine.setup(policy, 3)
    try:
        prompts = problems(policy, [0, 1, 2, 3], made).to(device)
        return engine.generate(prompts, GROUP, Sampling(2.0, max_new_tokens=14), 0)
    finally:
        engine.discard_ahead()


@pytest.mark.parametrize("max_rows", [5, 512])
def test_episodes_are_the_cpus(monkeypatch, max_rows):
    monkeypatch.setattr(generation, "ADMISSIONS", 2)
    expected, found = play("cpu", 512), play("cuda", max_rows)
    assert expected.turn_ids.max() == 2
    assert torch.equal(found.completion_ids.cpu(), expected.completion_ids)
    assert torch.equal(found.turn_ids.cpu(), expected.turn_ids)
    assert found.episodes == expected.episodes
    torch.testing.assert_close(
        found.stats.logprobs.cpu(), expected.stats.logprobs, rtol=1e-4, atol=1e-4
    )
    assert not found.stats.logprobs[~found.mask].any()
