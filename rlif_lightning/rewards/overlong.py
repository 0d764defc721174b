"""What becomes of completions that reach the length limit: a penalty, or no part in the update."""

from __future__ import annotations

import torch

from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead


class OverlongPenalty(RewardHead):
    """A penalty that grows over the last tokens before a limit (DAPO's soft overlong punishment).

    A completion of L tokens scores 0 up to ``limit - buffer``, then falls linearly,
    ``(limit - buffer - L) / buffer``, to -1 at the limit and beyond.
    https://arxiv.org/abs/2503.14476, equation 13. DAPO adds it to the correctness reward; beside
    other heads use ``advantage: GRPO``, which sums rewards before it normalises, for the same.

    Args:
        limit: tokens; in DAPO the generation limit, ``sampling.max_new_tokens``.
        buffer: tokens before it in which the penalty grows.
    """

    def __init__(self, limit: int, buffer: int):
        super().__init__()
        if not 0 < buffer <= limit:
            raise ValueError(f"limit={limit}, buffer={buffer}: need 0 < buffer <= limit")
        self.limit, self.buffer = limit, buffer

    def forward(self, rollout: Rollout) -> RewardOutput:
        excess = rollout.lengths - (self.limit - self.buffer)  # [B]
        return RewardOutput(-(excess.float() / self.buffer).clamp(0, 1))


class DropTruncated(RewardHead):
    """Takes completions that were cut at the length limit out of the update.

    No token of theirs is trained on, and their scores count in no group's mean or spread. (TRL's
    ``mask_truncated_completions`` and DAPO's overlong filtering leave their scores in.) A vote
    still counts their answers. The head itself scores nothing; its weight has no effect.
    """

    gives_scores = False

    def forward(self, rollout: Rollout) -> RewardOutput:
        nothing = torch.full((len(rollout.mask),), torch.nan, device=rollout.mask.device)
        return RewardOutput(nothing, keep_mask=rollout.ended)
