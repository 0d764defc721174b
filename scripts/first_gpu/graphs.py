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
from rlif_lightning.rollout.generation import DrawnTokens, Generation
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


class GraphedGeneration(Generation):
    """A generation that runs a step as a graph once its bucket has been seen twice.

    Attributes:
        graphs: by bucket.
        replayed: how many steps were graphs.
    """

    def run(self) -> DrawnTokens:
        self.graphs: dict[Any, torch.cuda.CUDAGraph | None] = {}
        self.replayed = 0
        self.admit()
        while not self.done:
            self.plan()
            self.graphed_step()
            self.settle(self.tokens[: self.n].cpu())
        self.decoder.finish()
        return DrawnTokens(self.ids, self.stats[:-1], self.lengths, self.ended)

    def graphed_step(self) -> None:
        """Run a bucket's first step as a warm-up, capture the second, replay all later ones."""
        if self.bucket not in self.graphs:
            self.graphs[self.bucket] = None
            self.step()
            return
        graph = self.graphs[self.bucket]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self.step()
            self.graphs[self.bucket] = graph
        graph.replay()
        self.replayed += 1


def compared(shape: str, precision: str, engine: NativeEngine) -> dict[str, Any]:
    """Compare eager steps with graphs: completions, log-probs, milliseconds a step."""
    policy = random_policy(shape, "cuda")
    prompts = random_prompts(PROMPTS, 32, policy.vocab_size, "cuda")
    found, done = {}, {}
    engine.setup(policy, 0)
    sampling = Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    with torch.no_grad(), autocast("cuda", precision), engine.ready(torch.device("cuda")):
        for name, kind in (
            ("warm-up", Generation),
            ("eager", Generation),
            ("graphs", GraphedGeneration),
        ):
            generation = kind(engine, prompts, GROUP, sampling, 0)
            torch.cuda.synchronize()
            started = time.perf_counter()
            done[name] = generation.run()
            torch.cuda.synchronize()
            found[f"milliseconds of a step, {name}"] = round(
                1000 * (time.perf_counter() - started) / TOKENS, 2
            )
        assert isinstance(generation, GraphedGeneration)
        found["graphs"], found["steps replayed"] = len(generation.graphs), generation.replayed
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
