"""Rollouts that a server draws ahead, on the twin: coming prompts wait on the CPU."""

from __future__ import annotations

from harness.stand_in_server import stand_in
from harness.vllm_runs import GROUP, PLAIN, changed, gap_of, prompts_of
from rlif_lightning.rollout.vllm_engine import VLLMServerEngine


def test_what_was_drawn_ahead_is_read_on_the_device(tmp_path):
    policy = changed().to("cuda")
    with stand_in() as server:
        engine = VLLMServerEngine(server.url, str(tmp_path), max_gap=1e-3, staleness=1)
        engine.setup(policy, 7)
        engine.look_ahead(lambda number: prompts_of(policy) if number < 2 else None, 0)
        now = prompts_of(policy).to("cuda")
        rollouts = [engine.generate(now, GROUP, PLAIN, number) for number in range(2)]
        engine.discard_ahead()
    for number, rollout in enumerate(rollouts):
        assert rollout.staleness is not None
        assert set(rollout.staleness.tolist()) == {number}
        assert rollout.completion_ids.is_cuda
        assert rollout.prompts.index.is_cuda
        assert gap_of(rollout) < 1e-3
