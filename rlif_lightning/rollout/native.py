"""The native engine: generation in this process, with the very weights that are trained.

Each prompt is computed and stored once; rows that ended leave, rows that wait take their places;
the logits that a token is drawn from also give its statistics, so neither old log-probs nor
self-certainty cost another forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.out_of_memory import give_back, is_out_of_memory
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import whole_weights
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rollout.autocasting import cast_once
from rlif_lightning.rollout.decoders import Decoder, cache_is_right, choose_decoder
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.generation import Completions, Generation
from rlif_lightning.rollout.lockstep import LockstepDecoder
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.sampling import Sampling


class NativeEngine(RolloutEngine):
    """Samples in this process.

    Args:
        max_rows: completions decoded at a time; bounds the memory, whatever the size of a step.
            Where memory runs out, one process draws the rollout again with half of them, and stays
            there.
    """

    def __init__(self, max_rows: int = 512):
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.max_rows = max_rows

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.cache_is_right: bool | None = None  # found out by the first rollout that would use it

    @torch.no_grad()
    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        self.policy.check_context(prompts.token_ids, sampling.max_new_tokens)
        device = prompts.token_ids[0].device
        with self.ready(device):
            done = self._completions(prompts, group_size, sampling, rollout_number)
        HEAP.release(device)
        longest = int(done.lengths.max())
        mask = (torch.arange(longest) < done.lengths.unsqueeze(1)).to(device)
        stats = TokenStats(
            *(broadcast_from_first(done.stats[:, :longest, i].contiguous()) for i in range(3))
        )
        stops = StopStrings(self.policy.tokenizer, sampling.stop)
        texts = [
            stops.text(ids[:length])
            for ids, length in zip(done.ids, done.lengths.tolist(), strict=True)
        ]
        ids = done.ids[:, :longest].contiguous().to(device)
        return Rollout(prompts, ids, mask, stats, texts, done.ended.to(device), group_size)

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """Inside, the policy can be decoded: whole weights, evaluation mode, casts of autocast made once."""
        training = self.policy.training
        self.policy.eval()
        try:
            with whole_weights(self.policy), cast_once(self.policy, device):
                yield
        finally:
            self.policy.train(training)

    def _completions(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Completions:
        """All completions; as memory runs out with ever fewer at a time, which draws the same ones."""
        while True:
            try:
                return Generation(self, prompts, group_size, sampling, rollout_number).run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.max_rows = self._fewer_rows(
                    min(self.max_rows, len(prompts) * group_size), error
                )
            give_back()
            warnings.warn(
                "out of memory in a rollout: it and all that follow are drawn with"
                f" max_rows={self.max_rows};"
                f" set model.engine.max_rows={self.max_rows} to begin so",
                stacklevel=2,
            )

    @staticmethod
    def _fewer_rows(rows: int, error: BaseException) -> int:
        if rows == 1:
            raise RuntimeError(
                "out of memory in a rollout with a single completion at a time; lower"
                " sampling.max_new_tokens"
            ) from error
        fewer = rows // 2
        if (
            num_processes() > 1
        ):  # another one may be inside a collective that this one would never join
            raise RuntimeError(
                "out of memory in a rollout on one of several ranks, which cannot draw it again on"
                " its own; resume"
                f" (--ckpt_path=last) with a lower model.engine.max_rows, such as {fewer}"
            ) from error
        return fewer

    def decoder(self, prompts: Prompts, group_size: int, sampling: Sampling) -> Decoder:
        """What advances the rows: by shared prompts where the model's attention allows."""
        device = prompts.token_ids[0].device
        rows = min(self.max_rows, len(prompts) * group_size)
        sizes = (rows, sampling.max_new_tokens, group_size)
        decoder = choose_decoder(
            self.policy, prompts.token_ids, *sizes, lambda: self._cached(device)
        )
        return (
            LockstepDecoder(decoder, self.policy, device) if self.policy.keeps_sharded else decoder
        )

    def _cached(self, device: torch.device) -> bool:
        """Whether the standard cache serves the policy; a warning if it does not."""
        if self.cache_is_right is None:
            self.cache_is_right = cache_is_right(self.policy, device)
            if not self.cache_is_right:
                warnings.warn(
                    f"{type(self.policy.causal_lm).__name__} cannot be decoded with the standard"
                    " cache: each token"
                    " costs a pass over its whole row, which is right but slow; vLLM may serve it"
                    " better",
                    stacklevel=2,
                )
        return self.cache_is_right

    def ends(self, tokens: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        """``[n]`` bool, on the CPU: which rows end by themselves with these tokens.

        Args:
            tokens: ``[n]`` drawn tokens, on the CPU.
            rows: ``[n]`` int64 on the CPU, the rows' numbers in the rollout.
            steps: ``[n]`` int64 on the CPU, the tokens' positions in their completions.
        """
        return torch.isin(tokens, torch.tensor(self.policy.eos_ids))
