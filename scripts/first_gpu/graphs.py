"""Capture decoding steps as CUDA graphs, and compare completions and speed with the engine's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from passes import autocast
from shapes import random_policy, random_prompts, tried
from torch import Tensor

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.generation import Generation
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

PROMPTS, GROUP, TOKENS = 8, 8, 64


class UnevenEnds(NativeEngine):
    """An engine whose rows end after 8 to ``TOKENS`` tokens, so that others take their places."""

    def setup(self, policy: PolicyModel, seed: int) -> None:
        super().setup(policy, seed)
        self.planned = torch.randint(
            8, TOKENS, (PROMPTS * GROUP,), generator=torch.Generator().manual_seed(0)
        )

    def ends(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        return positions + 1 >= self.planned[rows]


def compared(shape: str, precision: str, engine: NativeEngine) -> dict[str, Any]:
    """Compare eager steps with graphs: completions, log-probs, milliseconds a step."""
    policy = random_policy(shape, "cuda")
    prompts = random_prompts(PROMPTS, 32, policy.vocab_size, "cuda")
    found, done = {}, {}
    engine.setup(policy, 0)
    sampling = Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    with torch.no_grad(), autocast("cuda", precision), engine.ready(torch.device("cuda")):
        for name in ("warm-up", "eager", "graphs"):
            engine.cuda_graphs = name == "graphs"
            generation = Generation(engine, prompts, GROUP, sampling, 0)
            torch.cuda.synchronize()
            started = time.perf_counter()
            done[name] = generation.run()
            torch.cuda.synchronize()
            found[f"milliseconds of a step, {name}"] = round(
                1000 * (time.perf_counter() - started) / TOKENS, 2
            )
        assert generation.graphs is not None
        found["buckets"] = len(generation.graphs.graphs)
        found["replays"] = generation.graphs.replayed  # two a step: the draw, and the pass after it
    found["completions equal"] = bool(torch.equal(done["eager"].ids, done["graphs"].ids))
    found["largest difference of log-probs"] = float(
        (done["eager"].stats[..., 0] - done["graphs"].stats[..., 0]).abs().max()
    )
    return found


def graphs(_: Path) -> dict[str, Any]:
    """Measure two shapes in both precisions, with rows that end together and one by one."""
    return {
        f"{shape}, {precision}, {name}": tried(
            lambda s=shape, p=precision, e=engine: compared(s, p, e)
        )
        for shape in ("SmolLM2-135M", "Qwen2.5-1.5B")
        for precision in ("float32", "bf16-mixed")
        for name, engine in (("even", NativeEngine()), ("uneven", UnevenEnds(PROMPTS * GROUP // 2)))
    }
