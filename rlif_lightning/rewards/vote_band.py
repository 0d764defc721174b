"""``VoteBand``: which groups are trained on, by how much of a group agrees."""

from __future__ import annotations

from collections import Counter

import torch

from rlif_lightning.answers.clusters import ComparesAnswers
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.voting import group_clusters, vote_sizes

_MAJORITIES = ("any", "unique", "half")
_MIN_PARSEABLE = 2  # as ClusterVote's default: alone, an answer would have the whole vote


class VoteBand(ComparesAnswers, RewardHead):
    """Takes groups out of the update whose largest cluster is too small, too large or no majority.

    The share is that of a group's answers; it is 0 with fewer than 2 answers. A group is kept
    whole or not at all: none of its tokens is trained on or counted, and none of its scores
    applies. The head scores nothing; its weight has no effect. With ``model.dynamic_sampling``
    the groups that are taken out have no signal, and can be drawn again.

    Logs ``vote/kept``: the share of groups that are kept.

    Sources: bands, https://arxiv.org/abs/2605.22217; no majority, https://arxiv.org/abs/2511.04902.

    Args:
        share: lowest and highest share of the largest cluster, both kept; (0, 1) = every group.
        majority: any | unique | half: unique = the largest cluster is larger than each other one;
            half = it has more than half of the answers.
        extractor: finds the final answer of a completion.
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`).

    Raises:
        ValueError: an unknown name, or a share out of range.
    """

    gives_scores = False

    def __init__(
        self,
        share: tuple[float, float] = (0.0, 1.0),
        majority: str = "any",
        extractor: AnswerExtractor = AnswerExtractor(),
        equivalence: str = "exact",
    ):
        RewardHead.__init__(self)
        ComparesAnswers.__init__(self, extractor, equivalence)
        if not 0 <= share[0] <= share[1] <= 1:
            raise ValueError(f"share={share} must be (low, high) with 0 <= low <= high <= 1")
        if majority not in _MAJORITIES:
            known = ", ".join(_MAJORITIES)
            raise ValueError(f"majority={majority!r} is unknown; use one of {known}")
        self.share, self.majority = share, majority

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Keep or drop each group; every score is NaN."""
        answers, device = [self.extractor(text) for text in rollout.texts], rollout.mask.device
        clusters, _ = group_clusters(answers, rollout.group_size, self.equivalence)
        kept = [self.keeps(vote_sizes(ids, _MIN_PARSEABLE)) for ids in clusters]
        keep = torch.tensor(kept, device=device).repeat_interleave(rollout.group_size)  # [P] to [B]
        nothing = torch.full((len(keep),), torch.nan, device=device)
        return RewardOutput(nothing, keep, {"vote/kept": sum(kept) / len(kept)})

    def keeps(self, sizes: Counter[int]) -> bool:
        """Return whether a group with clusters of these sizes is trained on.

        Example:
            >>> sizes = Counter({0: 4, 1: 4, 2: 2})  # the largest has 0.4
            >>> VoteBand((0.4, 0.9)).keeps(sizes), VoteBand(majority="unique").keeps(sizes)
            (True, False)
        """
        largest, total = max(sizes.values(), default=0), sizes.total()
        if self.majority == "unique" and list(sizes.values()).count(largest) != 1:
            return False
        if self.majority == "half" and 2 * largest <= total:
            return False
        return self.share[0] <= largest / max(total, 1) <= self.share[1]
