"""``TrainFirst``: a vote of many completions, of which some are trained on."""

from __future__ import annotations

import torch

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead


class TrainFirst(RewardHead):
    """Takes all but a group's first completions out of the update, once every head has scored.

    A vote is so held by the whole group, and advantages compare the first ``count`` completions
    alone. TTRL (https://arxiv.org/abs/2504.16084) votes with 64 and trains on the first 32. The
    head scores nothing; its weight has no effect.

    Args:
        count: completions of a group that are trained on, at least 2.

    Raises:
        ValueError: a count below 2, or (before the first rollout) not below the group's size.
    """

    gives_scores = False

    def __init__(self, count: int):
        super().__init__()
        if count < 2:
            raise ValueError(f"count={count} must be at least 2: one completion has no advantage")
        self.count = count

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse groups of which nothing would be left out."""
        if self.count >= group_size:
            raise ValueError(
                f"count={self.count} leaves out nothing of data.group_size={group_size}; raise the"
                " group size, or remove this head"
            )

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Keep the first completions of each group; every score is NaN."""
        number = torch.arange(len(rollout.mask), device=rollout.mask.device) % rollout.group_size
        return RewardOutput(
            torch.full_like(number, torch.nan, dtype=torch.float32), number < self.count
        )
