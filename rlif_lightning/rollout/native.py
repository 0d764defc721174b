"""The native engine: generation in this process, with the very weights that are trained.

Each prompt is computed and stored once per group; rows that ended leave, prompts that wait take their room; the logits
that a token is drawn from also give its statistics, so neither old log-probs nor self-certainty cost another forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.head import pieces
from rlif_lightning.model.out_of_memory import give_back, is_out_of_memory
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.token_stats import token_stats
from rlif_lightning.parallel.fsdp import whole_weights
from rlif_lightning.processes.collectives import agreed
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rollout.decoders import (
    Decoder,
    LockstepDecoder,
    RecomputingDecoder,
    SharedPrefixDecoder,
    StandardDecoder,
    cache_is_right,
)
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.kv_memory import moves
from rlif_lightning.sampling import Sampling, counter_uniforms, cut_at_stop, sample_weights, truncate_logits

STOP_TAIL = 8  # tokens decoded besides a stop string's own length when looking for it


class NativeEngine(RolloutEngine):
    """Samples in this process.

    Args:
        max_rows: completions decoded at a time; bounds the memory, whatever the size of a step. At least one group is.
            Where memory runs out, one process draws the rollout again with half of them, and stays there.
    """

    def __init__(self, max_rows: int = 512):
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.max_rows = max_rows

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.cache_is_right: bool | None = None  # found out by the first rollout that would use it

    @torch.no_grad()
    def generate(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Rollout:
        self.policy.check_context(prompts.token_ids, sampling.max_new_tokens)
        training = self.policy.training
        self.policy.eval()
        with whole_weights(self.policy), _weights_cast_once(prompts.token_ids[0].device):
            done = self._completions(prompts, group_size, sampling, step)
        HEAP.release(prompts.token_ids[0].device)
        self.policy.train(training)
        ids = pad_sequence([row.ids for row in done], batch_first=True)
        lengths = torch.tensor([len(row.ids) for row in done], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        stats = TokenStats(*(agreed(pad_sequence([row.stats[i] for row in done], batch_first=True)) for i in range(3)))
        ended = torch.tensor([row.ended for row in done], device=ids.device)
        texts = [self._text(row.ids, sampling) for row in done]
        return Rollout(prompts, ids, mask, stats, texts, ended, group_size)

    def _completions(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> list[_Completion]:
        """All completions; as memory runs out with ever fewer at a time, which draws the same ones."""
        while True:
            try:
                return _Generation(self, prompts, group_size, sampling, step).run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.max_rows = self._fewer_rows(min(self.max_groups(group_size), len(prompts)), group_size, error)
            give_back()
            warnings.warn(
                f"out of memory in a rollout: it and all that follow are drawn with max_rows={self.max_rows};"
                f" set model.engine.max_rows={self.max_rows} to begin so",
                stacklevel=2,
            )

    @staticmethod
    def _fewer_rows(groups: int, group_size: int, error: BaseException) -> int:
        if groups == 1:
            raise RuntimeError(
                f"out of memory in a rollout with a single group of {group_size} completions at a time; lower"
                " sampling.max_new_tokens or data.group_size"
            ) from error
        fewer = groups // 2 * group_size
        if num_processes() > 1:  # another one may be inside a collective that this one would never join
            raise RuntimeError(
                "out of memory in a rollout on one of several ranks, which cannot draw it again on its own; resume"
                f" (--ckpt_path=last) with a lower model.engine.max_rows, such as {fewer}"
            ) from error
        return fewer

    def decoder(self, prompts: Prompts, group_size: int, sampling: Sampling) -> Decoder:
        """What advances the rows: by shared prompts where the model's attention allows."""
        device = prompts.token_ids[0].device
        decoder: Decoder
        if self.policy.shares_prompts:
            groups = min(self.max_groups(group_size), len(prompts))
            longest = max(map(len, prompts.token_ids))
            own = max(sampling.max_new_tokens - 1, 1)
            decoder = SharedPrefixDecoder(self.policy, groups, groups * group_size, longest, own, device)
        else:
            decoder = StandardDecoder(self.policy) if self._cached(device) else RecomputingDecoder(self.policy)
        return LockstepDecoder(decoder, self.policy, device) if self.policy.keeps_sharded else decoder

    def _cached(self, device: torch.device) -> bool:
        """Whether the standard cache serves the policy; a warning if it does not."""
        if self.cache_is_right is None:
            self.cache_is_right = cache_is_right(self.policy, device)
            if not self.cache_is_right:
                warnings.warn(
                    f"{type(self.policy.causal_lm).__name__} cannot be decoded with the standard cache: each token"
                    " costs a pass over its whole row, which is right but slow; vLLM may serve it better",
                    stacklevel=2,
                )
        return self.cache_is_right

    def max_groups(self, group_size: int) -> int:
        """Groups decoded at a time."""
        return max(1, self.max_rows // group_size)

    def ends(self, tokens: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        """``[n]`` bool, on the CPU: which rows end by themselves with these tokens.

        Args:
            tokens: ``[n]`` drawn tokens.
            rows: ``[n]`` int64 on the CPU, the rows' numbers in the rollout.
            steps: ``[n]`` int64 on the CPU, the tokens' positions in their completions.
        """
        return torch.isin(tokens, torch.tensor(self.policy.eos_ids, device=tokens.device)).cpu()

    def _text(self, ids: Tensor, sampling: Sampling) -> str:
        return cut_at_stop(self.policy.tokenizer.decode(ids, skip_special_tokens=True), sampling.stop)


@contextmanager
def _weights_cast_once(device: torch.device) -> Iterator[None]:
    """Under autocast, let it keep its low-precision copies of the weights for one rollout, in which none changes."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    try:
        with torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()  # or the update would see these copies, without a graph and soon stale


@dataclass(frozen=True)
class _Completion:
    """One finished row: ids ``[t]``, statistics ``[3, t]``."""

    ids: Tensor
    stats: Tensor
    ended: bool


class _Generation:
    """One call of ``generate``: rows under way are the first n of each tensor here; bookkeeping is on the CPU."""

    def __init__(self, engine: NativeEngine, prompts: Prompts, group_size: int, sampling: Sampling, step: int):
        self.engine, self.policy, self.sampling = engine, engine.policy, sampling
        self.prompts, self.group_size, self.step = prompts, group_size, step
        self.device = prompts.token_ids[0].device
        self.decoder = engine.decoder(prompts, group_size, sampling)
        self.max_groups, self.next_prompt = engine.max_groups(group_size), 0
        self.rule = self.policy.rule(sampling, self.device)
        self.rows = torch.zeros(0, dtype=torch.int64)  # [n] their numbers in the rollout
        self.steps = torch.zeros(0, dtype=torch.int64)  # [n] tokens drawn so far
        self.closing = torch.zeros(0, dtype=torch.bool)  # [n] a stop string ended it; the end of sequence comes next
        self.uniforms = torch.zeros((0, sampling.max_new_tokens), dtype=torch.float64)  # [n, T]
        self.ids = torch.zeros((0, sampling.max_new_tokens), dtype=torch.int64, device=self.device)
        dtype = torch.promote_types(self.policy.causal_lm.dtype, torch.float32)
        self.stats = torch.zeros((0, 3, sampling.max_new_tokens), dtype=dtype, device=self.device)  # [n, 3, T]
        self.done: dict[int, _Completion] = {}

    def run(self) -> list[_Completion]:
        """All completions, in the order of the rollout's rows."""
        hidden = self._admit(None)
        while hidden is not None:
            tokens, stats = self._draw(hidden)
            tokens = self._record(tokens, stats)
            hidden = self.decoder.advance(tokens) if len(tokens) else None
            hidden = self._admit(hidden)
        self.decoder.finish()
        return [self.done[row] for row in range(len(self.prompts) * self.group_size)]

    def _admit(self, hidden: Tensor | None) -> Tensor | None:
        """Let waiting prompts in where there is room; hidden states of all rows, None once there is no row left."""
        first = self.next_prompt
        if first == len(self.prompts) or (len(self.rows) and not self.decoder.can_join):
            return hidden
        # A prompt is kept until the last of its rows has left, so it is groups that are counted and not rows.
        room = self.max_groups - len((self.rows // self.group_size).unique())
        if room < 1:
            return hidden
        self.next_prompt = min(first + room, len(self.prompts))
        chosen = range(first, self.next_prompt)
        new = self.decoder.admit([self.prompts.token_ids[p] for p in chosen], self.group_size)
        rows = torch.arange(first * self.group_size, self.next_prompt * self.group_size)
        index = self.prompts.index.tolist()
        counters = (
            [index[p] for p in chosen for _ in range(self.group_size)],
            list(range(self.group_size)) * len(chosen),
        )
        uniforms = counter_uniforms(self.engine.seed, self.step, *counters, self.sampling.max_new_tokens)
        self.rows, self.steps = torch.cat([self.rows, rows]), torch.cat([self.steps, torch.zeros_like(rows)])
        self.closing = torch.cat([self.closing, torch.zeros_like(rows, dtype=torch.bool)])
        self.uniforms = torch.cat([self.uniforms, uniforms])
        self.ids = torch.cat([self.ids, self.ids.new_zeros((len(rows), *self.ids.shape[1:]))])
        self.stats = torch.cat([self.stats, self.stats.new_zeros((len(rows), *self.stats.shape[1:]))])
        return new if hidden is None else torch.cat([hidden, new])

    def _draw(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Draw every row's next token: tokens ``[n]`` and their statistics ``[n, 3]``."""
        uniforms = self.uniforms.gather(1, self.steps.unsqueeze(1)).squeeze(1).to(self.device)
        early = self.sampling.min_new_tokens > 0 and bool((self.steps < self.sampling.min_new_tokens).any())
        may_end = (self.steps >= self.sampling.min_new_tokens).to(self.device) if early else None
        closing = self.closing.to(self.device) if self.closing.any() else None
        tokens, stats = [], []
        for start in range(0, len(hidden), size := self.policy.rows_at_once(self.device)):
            raw = self.policy.head(hidden[start : start + size])
            for piece in pieces(raw):
                rows = slice(start + piece.start, start + min(piece.stop, len(raw)))
                ends, closes = (None if given is None else given[rows] for given in (may_end, closing))
                drawn = self._draw_piece(raw[piece], uniforms[rows], ends, closes)
                tokens.append(drawn[0])
                stats.append(drawn[1])
        return agreed(torch.cat(tokens)), torch.cat(stats)

    def _draw_piece(
        self, raw: Tensor, uniforms: Tensor, may_end: Tensor | None, closing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.rule.apply(raw)
        parts = self.rule.parts(logits, may_end)
        weights = parts.weights
        if self.sampling.top_k or self.sampling.top_p < 1:
            kept = truncate_logits(weights.log(), self.sampling.top_k, self.sampling.top_p)
            weights = weights.masked_fill(kept == -torch.inf, 0.0)
        greedy = self.sampling.temperature == 0
        tokens = weights.argmax(-1) if greedy else sample_weights(weights, uniforms)
        if closing is not None:
            tokens = tokens.masked_fill(closing, self.policy.stop_id)
        stats = token_stats(logits, tokens, self.rule.forbidden(may_end), parts)
        return tokens, torch.stack([getattr(stats, f.name) for f in fields(TokenStats)], 1)

    def _record(self, tokens: Tensor, stats: Tensor) -> Tensor:
        """Write the drawn tokens down, take out rows that are finished; the tokens of the rows that go on."""
        rows, steps = torch.arange(len(tokens), device=self.device), self.steps.to(self.device)
        self.ids[rows, steps], self.stats[rows, :, steps] = tokens, stats.to(self.stats.dtype)
        ended = self.engine.ends(tokens, self.rows, self.steps) | self.closing
        self.steps += 1
        stopped = self._stopped()
        if self.sampling.train_stop:
            self.closing = stopped & ~ended & (self.steps < self.sampling.max_new_tokens)
            stopped &= ~self.closing
        ended |= stopped
        finished = ended | (self.steps == self.sampling.max_new_tokens)
        for slot in finished.nonzero().squeeze(1).tolist():
            length = int(self.steps[slot])
            kept = self.ids[slot, :length].clone(), self.stats[slot, :, :length].clone()
            self.done[int(self.rows[slot])] = _Completion(*kept, bool(ended[slot]))
        return self._leave(tokens, ~finished) if finished.any() else tokens

    def _stopped(self) -> Tensor:
        """``[n]`` bool: rows whose text has a stop string."""
        stop = self.sampling.stop
        found = torch.zeros(len(self.rows), dtype=torch.bool)
        if not stop:
            return found
        tail = max(map(len, stop)) + STOP_TAIL
        for slot, length in enumerate(self.steps.tolist()):
            ids = self.ids[slot, max(0, length - tail) : length]
            text = self.policy.tokenizer.decode(ids, skip_special_tokens=True)
            found[slot] = any(string in text for string in stop)
        return found

    def _leave(self, tokens: Tensor, stays: Tensor) -> Tensor:
        holes, movers, left = moves(stays)
        self.decoder.leave(holes, movers, left)
        for state in (self.rows, self.steps, self.closing, self.uniforms, self.ids, self.stats, tokens):
            state[holes.to(state.device)] = state[movers.to(state.device)]
        self.rows, self.steps, self.closing = self.rows[:left], self.steps[:left], self.closing[:left]
        self.uniforms, self.ids, self.stats = self.uniforms[:left], self.ids[:left], self.stats[:left]
        return tokens[:left]
