"""The native engine: generation in this process, with the weights that are trained.

Each prompt is prefilled and cached once per group. Completions that ended leave the batch, and
waiting ones are admitted (``generation.py``). Token statistics are computed from the sampling
logits, so neither old log-probs nor self-certainty need another forward pass.

Example: prompts of 5 and 3 tokens, two completions each, which end after 4, 2, 3 and 1 tokens (on a
CPU; a GPU computes last tokens as well):

    prefill     5 + 3 tokens in one pass, without padding
    step 0      4 tokens drawn from the prompts' last hidden states; completion 3 ends, 3 computed
    step 1      3 tokens drawn; completion 1 ends, 2 computed
    step 2      2 tokens drawn; completion 2 ends, 1 computed
    step 3      1 token drawn; completion 0 ends
    result      ids and mask [4, 4]; 10 tokens were drawn, 8 + 6 were computed
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
from rlif_lightning.rollout.decoder_base import Decoder
from rlif_lightning.rollout.decoders import RecomputingDecoder, cache_is_right, choose_decoder
from rlif_lightning.rollout.episodes import EpisodeEngine
from rlif_lightning.rollout.generation import DrawnTokens, Generation
from rlif_lightning.rollout.lockstep import LockstepDecoder
from rlif_lightning.rollout.step_graphs import refuse_uncapturable
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.sampling import Sampling


class NativeEngine(EpisodeEngine):
    """An engine that samples in this process.

    Args:
        max_rows: completions that are decoded at a time; bounds the memory, whatever the size of a
            rollout. If memory runs out, a single process draws the rollout again with half as
            many, and keeps that number.
        cuda_graphs: whether a GPU repeats a decoding step as one launch (``step_graphs.py``): the
            same completions bit for bit, for more memory.
    """

    memory = "native"

    def __init__(self, max_rows: int = 512, cuda_graphs: bool = False):
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.max_rows, self.cuda_graphs = max_rows, cuda_graphs

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.cache_is_right: bool | None = None  # tested by the first rollout that would use it

    @torch.no_grad()
    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        device = prompts.token_ids[0].device
        with self.ready(device):
            done = self._draw(prompts, group_size, sampling, rollout_number)
        HEAP.release(device)
        longest = int(done.lengths.max())  # max_new_tokens only if a completion is that long
        mask = (torch.arange(longest) < done.lengths.unsqueeze(1)).to(device)  # [B, longest]
        # Under tensor parallelism rounding may differ between processes of one data rank.
        parts = (done.stats[:, :longest, i].contiguous() for i in range(3))
        stats = TokenStats(*map(broadcast_from_first, parts))
        ids = done.ids[:, :longest].contiguous().to(device)
        ended = done.ended.to(device)
        if done.turns is not None:
            drawn = Rollout(done.prompts, ids, mask, stats, [], ended, group_size)
            return self.with_turns(drawn, done.turns)
        stops = StopStrings(self.policy.tokenizer, sampling.stop)
        lengths = done.lengths.tolist()
        texts = [stops.text(ids[:n]) for ids, n in zip(done.ids, lengths, strict=True)]
        return Rollout(prompts, ids, mask, stats, texts, ended, group_size)

    def columns(self, prompts: Prompts, sampling: Sampling) -> int:
        """Return T: the most tokens that a row can have after its prompt, observations included.

        Raises:
            ValueError: the model cannot read as many; names the limit.
        """
        task, limit = prompts.environment, sampling.max_new_tokens
        room = 0 if task is None else task.settings.max_observation_tokens
        self.policy.check_context(prompts.token_ids, limit, room)
        return limit + room

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """Keep weights whole, the policy in evaluation mode and autocast's casts cached."""
        training = self.policy.training
        self.policy.eval()
        try:
            # Sharded weights would otherwise be gathered again for every token.
            with whole_weights(self.policy), cast_once(self.policy, device):
                yield
        finally:
            self.policy.train(training)

    def _draw(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> DrawnTokens:
        """Draw all completions; halve ``max_rows`` and draw again when memory runs out.

        The same completions are drawn then: uniforms depend on counters alone.
        """
        while True:
            try:
                return Generation(self, prompts, group_size, sampling, rollout_number).run()
            except BaseException as error:
                if self.pool is not None:
                    self.pool.abandon()
                if not isinstance(error, (RuntimeError, MemoryError)) or not is_out_of_memory(
                    error
                ):
                    raise
                rows = min(self.max_rows, len(prompts) * group_size)
                self.max_rows = self._fewer_rows(rows, error)
            # Outside of the handler, whose traceback holds the tensors of the failed attempt.
            give_back()
            warnings.warn(
                "out of memory in a rollout: this rollout and all later ones are drawn with"
                f" max_rows={self.max_rows}; set model.engine.max_rows={self.max_rows} to start"
                " with it",
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
        if num_processes() > 1:
            # Another process may be inside a collective that this one would never join.
            raise RuntimeError(
                "out of memory in a rollout on one of several processes, which cannot draw it"
                " again on its own; resume (--ckpt_path=last) with a lower model.engine.max_rows,"
                f" such as {fewer}"
            ) from error
        return fewer

    def decoder(self, prompts: Prompts, group_size: int, columns: int) -> Decoder:
        """Return the decoder of these prompts and at most so many tokens (``decoders.py``)."""
        device = prompts.token_ids[0].device
        rows = min(self.max_rows, len(prompts) * group_size)
        sizes = (rows, columns, group_size)
        decoder = choose_decoder(
            self.policy, prompts.token_ids, *sizes, lambda: self._cache_serves(device)
        )
        if prompts.environment is not None and not decoder.can_extend:
            decoder = RecomputingDecoder(self.policy, prompts.token_ids)
        if self.policy.keeps_sharded:
            decoder = LockstepDecoder(decoder, self.policy, device)
        if self.cuda_graphs:
            refuse_uncapturable(decoder, device)
        return decoder

    def _cache_serves(self, device: torch.device) -> bool:
        """Return whether the standard cache serves the policy; warn if it does not."""
        if self.cache_is_right is None:
            self.cache_is_right = cache_is_right(self.policy, device)
            if not self.cache_is_right:
                warnings.warn(
                    f"{type(self.policy.causal_lm).__name__} cannot be decoded with the standard"
                    " cache: each token costs a pass over its whole sequence, which is correct but"
                    " slow; vLLM may be faster",
                    stacklevel=2,
                )
        return self.cache_is_right

    def ends(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return which completions end by themselves with these tokens, ``[n]`` bool on the CPU.

        Args:
            tokens: ``[n]`` drawn tokens, on the CPU.
            rows: ``[n]`` int64 on the CPU, the completions' numbers in the rollout.
            positions: ``[n]`` int64 on the CPU, the tokens' positions in their completions.
        """
        return torch.isin(tokens, torch.tensor(self.policy.eos_ids))
