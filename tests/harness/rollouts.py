"""Rollouts made by hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlif_lightning.records import Prompts, RewardOutput, Rollout, TokenStats
from rlif_lightning.rewards import (
    RewardHead,
)


def handmade(
    texts: list[str], group_size: int, stats: TokenStats | None = None, **columns: list
) -> Rollout:
    """A rollout of given texts; row b has (b mod 3) + 1 tokens, or all of them where statistics are
    given.
    """
    num_rows, num_prompts = len(texts), len(texts) // group_size
    if stats is None:
        values = torch.arange(num_rows * 3.0).view(num_rows, 3) / 10
        mask = torch.arange(3) <= torch.arange(num_rows).unsqueeze(1) % 3
        stats = TokenStats(-values, values / 2, values * 2).map(lambda v: v.where(mask, 0.0))
    else:
        mask = torch.ones_like(stats.logprobs, dtype=torch.bool)
    prompts = Prompts(
        [torch.tensor([1, 2 + p]) for p in range(num_prompts)],
        [f"problem {p}" for p in range(num_prompts)],
        columns,
        torch.arange(num_prompts),
    )
    ended = torch.arange(num_rows) % 2 == 0
    return Rollout(prompts, mask.long() * 5, mask, stats, texts, ended, group_size)


def with_observations(sampled: Rollout, tokens: int = 3) -> Rollout:
    """The same completions with an observation behind the first token of each; its statistics are
    such that nobody could read them unnoticed.
    """

    def widened(values: Tensor, between: float) -> Tensor:
        seen = torch.full_like(values[:, :1], between).expand(-1, tokens)
        return torch.cat([values[:, :1], seen, values[:, 1:]], 1)

    ids, mask = widened(sampled.completion_ids, 6), widened(sampled.mask, False)
    turns = torch.where(mask, (torch.arange(mask.shape[1]) > 0).long(), -1)
    stats = sampled.stats.map(lambda values: widened(values, 77.0))
    return replace(sampled, completion_ids=ids, mask=mask, stats=stats, turn_ids=turns)


class Given(RewardHead):
    """Gives fixed scores; remembers which columns it saw."""

    def __init__(self, scores: Tensor, needs_gold: bool = False):
        super().__init__()
        self.scores, self.needs_gold = scores, needs_gold

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.seen = set(rollout.prompts.columns)
        return RewardOutput(self.scores)
