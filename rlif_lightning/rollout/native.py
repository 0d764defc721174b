"""The native engine: generation in this process, with the very weights that are trained.

Each prompt is prefilled once and its cache repeated for the group; rows that ended leave the batch; the logits that a
token is drawn from also give its statistics, so neither old log-probs nor self-certainty cost another forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor
from transformers import DynamicCache

from rlif_lightning.batch import Prompts, Rollout, TokenStats
from rlif_lightning.policy import PolicyModel
from rlif_lightning.rewards.functional import at_least_float32, token_stats
from rlif_lightning.rollout.base import RolloutEngine
from rlif_lightning.rollout.sampling import Sampling, counter_uniforms, sample_tokens, truncate_logits

COMPACT_SHARE = 0.25  # ended rows leave once they are this share of the batch: leaving copies the cache
STOP_TAIL = 8  # tokens decoded besides a stop string's own length when looking for it


class NativeEngine(RolloutEngine):
    """Samples with the standard Hugging Face cache.

    Args:
        max_rows: completions decoded at a time; bounds the memory of the cache, whatever the size of a step.
    """

    def __init__(self, max_rows: int = 512):
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.max_rows = max_rows

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed = policy, seed

    @torch.no_grad()
    def generate(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Rollout:
        training = self.policy.training
        self.policy.eval()  # in training mode, gradient checkpointing would switch the cache off
        uniforms = self._uniforms(prompts, group_size, sampling, step)
        per_batch = max(1, self.max_rows // group_size)
        decoded = []
        for start in range(0, len(prompts), per_batch):
            chosen = slice(start, start + per_batch)
            rows = slice(start * group_size, (start + per_batch) * group_size)
            decoding = _Decoding(self.policy, prompts.token_ids[chosen], group_size, sampling, uniforms[rows])
            decoded.append(decoding.run())
        self.policy.train(training)
        ids, mask, ended = (_join([part[i] for part in decoded]) for i in (0, 1, 3))
        stats = TokenStats(*(_join([getattr(part[2], f.name) for part in decoded]) for f in fields(TokenStats)))
        texts = [self._text(row[keep], sampling.stop) for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
        return Rollout(prompts, ids, mask, stats, texts, ended, group_size)

    def _uniforms(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Tensor:
        index = [i for i in prompts.index.tolist() for _ in range(group_size)]
        completion = list(range(group_size)) * len(prompts)
        return counter_uniforms(self.seed, step, index, completion, sampling.max_new_tokens)

    def _text(self, ids: Tensor, stop: Sequence[str]) -> str:
        text = self.policy.tokenizer.decode(ids, skip_special_tokens=True)
        ends = [text.find(string) for string in stop if string in text]
        return text[: min(ends)] if ends else text


class _Decoding:
    """One batch of groups on its way from prompts to completions; b rows are still in the batch."""

    def __init__(
        self, policy: PolicyModel, prompt_ids: Sequence[Tensor], group_size: int, sampling: Sampling, uniforms: Tensor
    ):
        self.policy, self.sampling = policy, sampling
        self.device = prompt_ids[0].device
        num_rows, num_steps = uniforms.shape
        self.uniforms = uniforms.to(self.device)
        self.ids = torch.zeros((num_rows, num_steps), dtype=torch.int64, device=self.device)
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.ended = torch.zeros(num_rows, dtype=torch.bool, device=self.device)
        self.rows = torch.arange(num_rows, device=self.device)  # [b] which rows are in the batch
        self.logits = self._prefill(prompt_ids, group_size)
        self.stats = TokenStats(*self.logits.new_zeros((3, num_rows, num_steps)))

    def _prefill(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        """Run each prompt once (padded on the left), then repeat its cache: next-token logits ``[b, V]``."""
        lengths = torch.tensor([len(ids) for ids in prompt_ids], device=self.device)
        width = int(lengths.max())
        padded = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids in prompt_ids])
        real = torch.arange(width, device=self.device) >= (width - lengths).unsqueeze(1)
        self.cache = DynamicCache(config=self.policy.causal_lm.config)
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(padded, real, positions)
        self.cache.batch_repeat_interleave(group_size)
        self.attended = real.repeat_interleave(group_size, 0)
        self.position = lengths.repeat_interleave(group_size)
        return logits.repeat_interleave(group_size, 0)

    def _forward(self, ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        output = self.policy.model(
            input_ids=ids,
            attention_mask=attended.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return at_least_float32(output.logits[:, -1])

    def run(self) -> tuple[Tensor, Tensor, TokenStats, Tensor]:
        """Decode to the end: ids, mask ``[B, T]``, statistics and ended ``[B]``, cut to the longest completion."""
        for t in range(self.sampling.max_new_tokens):
            tokens = self._draw(t)
            self._leave()
            if len(self.rows) == 0 or t + 1 == self.sampling.max_new_tokens:
                break
            self._advance(tokens)
        longest = int(self.mask.sum(-1).max())
        return (
            self.ids[:, :longest],
            self.mask[:, :longest],
            self.stats.map(lambda values: values[:, :longest]),
            self.ended,
        )

    def _draw(self, t: int) -> Tensor:
        """Draw token ``t`` of every row in the batch, record it with its statistics, mark rows that end with it."""
        logits = self.logits / (self.sampling.temperature or 1.0)
        may_end = torch.full_like(self.rows, t >= self.sampling.min_new_tokens, dtype=torch.bool)
        forbidden = self.policy.forbidden_ends(logits, may_end)
        allowed = logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)
        allowed = truncate_logits(allowed, self.sampling.top_k, self.sampling.top_p)
        greedy = self.sampling.temperature == 0
        tokens = allowed.argmax(-1) if greedy else sample_tokens(allowed, self.uniforms[self.rows, t])
        running = ~self.ended[self.rows]
        rows = self.rows[running]
        self.ids[rows, t] = tokens[running]
        self.mask[rows, t] = True
        drawn = token_stats(logits, tokens, forbidden)
        self.stats.logprobs[rows, t] = drawn.logprobs[running]
        self.stats.entropy[rows, t] = drawn.entropy[running]
        self.stats.self_certainty[rows, t] = drawn.self_certainty[running]
        self.ended[rows] = torch.isin(tokens[running], torch.tensor(self.policy.eos_ids, device=self.device))
        self._look_for_stop(rows)
        return tokens

    def _look_for_stop(self, rows: Tensor) -> None:
        if not self.sampling.stop:
            return
        tail = max(map(len, self.sampling.stop)) + STOP_TAIL
        for row in rows.tolist():
            text = self.policy.tokenizer.decode(self.ids[row][self.mask[row]][-tail:], skip_special_tokens=True)
            if any(string in text for string in self.sampling.stop):
                self.ended[row] = True

    def _leave(self) -> None:
        """Take ended rows out of the batch once there are enough of them to be worth copying the cache."""
        running = ~self.ended[self.rows]
        num_ended = len(self.rows) - int(running.sum())
        self.kept = running.nonzero().squeeze(1) if num_ended >= COMPACT_SHARE * len(self.rows) else None
        if self.kept is not None:
            self.cache.batch_select_indices(self.kept)
            self.rows, self.attended, self.position = (
                state[self.kept] for state in (self.rows, self.attended, self.position)
            )

    def _advance(self, tokens: Tensor) -> None:
        tokens = tokens if self.kept is None else tokens[self.kept]
        self.attended = torch.nn.functional.pad(self.attended, (0, 1), value=True)
        self.logits = self._forward(tokens.unsqueeze(1), self.attended, self.position.unsqueeze(1))
        self.position = self.position + 1


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate ``[b]`` or ``[b, t]`` parts along the rows, padding completions to the longest."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
