"""``SCRL``: a vote that rewards a clear majority, and punishes rare answers of unsure completions.

Read in this order: ``judged`` (which answers), ``SCRL.score`` (what they pay), ``SCRL`` (the head).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from rlif_lightning.answers.clusters import ComparesAnswers
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.masked import mean_over_completion
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.voting import cluster_metrics, group_clusters

SCORES = ("binary", "continuous")
_ROUNDING = 1e-6  # of float32 entropies (nats), and of a share times the group's size


@dataclass(frozen=True)
class Judged:
    """A group's answers as SCRL sees them.

    Attributes:
        shares: of each cluster, in the group's G completions.
        excess: mean entropy of each cluster's completions minus that of the group's, nats.
        positive: the cluster that is rewarded; None = no majority is clear enough.
        negative: the clusters that are punished.
    """

    shares: dict[int, float]
    excess: dict[int, float]
    positive: int | None
    negative: frozenset[int]


def judged(
    ids: Sequence[int | None], entropies: Sequence[float], limits: tuple[float, float, float]
) -> Judged:
    """Find the answers of a group that are rewarded and punished.

    The largest cluster is rewarded if its share of the group is at least ``limits[0]``, and larger
    than the next one's by more than ``limits[1]``. Another cluster is punished if its share is
    below ``limits[2]`` and the mean entropy of its completions is not below the group's. A
    completion without an answer counts in the group's size and its entropy.

    Args:
        ids: each completion's cluster; None = no answer.
        entropies: each completion's mean token entropy, nats.
        limits: positive_share, margin and negative_share.
    """
    size, sizes = len(ids), Counter(i for i in ids if i is not None)
    least, margin, rare = (size * limit for limit in limits)
    mean = fmean(entropies)
    excess = {
        i: fmean(own for own, other in zip(entropies, ids, strict=True) if other == i) - mean
        for i in sizes
    }
    ranked = sizes.most_common(2)
    clear = bool(ranked) and ranked[0][1] >= least - _ROUNDING
    if clear and len(ranked) == 2:
        clear = ranked[0][1] - ranked[1][1] > margin + _ROUNDING
    positive = ranked[0][0] if clear else None
    negative = {
        i
        for i, count in sizes.items()
        if i != positive and count < rare - _ROUNDING and excess[i] >= -_ROUNDING
    }
    shares = {i: count / size for i, count in sizes.items()}
    return Judged(shares, excess, positive, frozenset(negative))


class SCRL(ComparesAnswers, RewardHead):
    """A vote with a positive answer where the majority is clear, and negative answers.

    https://arxiv.org/abs/2603.19880. ``binary``: 1 for the positive answer, -1 for negative ones
    and for a completion without an answer, else 0. ``continuous``, with an answer's share p and
    the excess h of its completions' mean entropy over the group's: ``p - positive_share`` for the
    positive answer (the released code pays ``p``), ``p - negative_share`` for negative ones, else
    0, all minus ``entropy_weight * h``; without an answer -1.

    Logs what ``ClusterVote`` logs, with shares of the whole group, ``vote/positive`` (groups with a
    positive answer) and ``vote/negative`` (completions whose answer is negative).

    Args:
        scores: binary | continuous.
        positive_share: least share of the positive answer in the group.
        margin: by more than this it must exceed the next answer's share.
        negative_share: a negative answer's share is below this.
        entropy_weight: of the excess entropy (nats) in continuous scores.
        extractor: finds the final answer of a completion.
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`).

    Raises:
        ValueError: an unknown name, or a number out of range or without an effect.
    """

    def __init__(
        self,
        scores: str = "binary",
        positive_share: float = 0.5,
        margin: float = 0.15,
        negative_share: float = 0.15,
        entropy_weight: float = 0.1,
        extractor: AnswerExtractor = AnswerExtractor(),
        equivalence: str = "exact",
    ):
        RewardHead.__init__(self)
        ComparesAnswers.__init__(self, extractor, equivalence)
        if scores not in SCORES:
            raise ValueError(f"scores={scores!r} is unknown; use one of {', '.join(SCORES)}")
        self.limits = (positive_share, margin, negative_share)
        if not all(0 <= limit <= 1 for limit in self.limits) or not entropy_weight >= 0:
            raise ValueError(
                f"positive_share={positive_share}, margin={margin}, negative_share="
                f"{negative_share}, entropy_weight={entropy_weight}: need shares in [0, 1] and"
                " entropy_weight >= 0"
            )
        if scores == "binary" and entropy_weight != 0.1:
            raise ValueError(
                f"entropy_weight={entropy_weight} has no effect with scores='binary'; leave it out,"
                " or set scores=continuous"
            )
        self.scores, self.entropy_weight = scores, entropy_weight

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions, float32, on the rollout's device."""
        answers, size = [self.extractor(text) for text in rollout.texts], rollout.group_size
        clusters, undecided = group_clusters(answers, size, self.equivalence)
        entropies = mean_over_completion(rollout.stats.entropy, rollout.mask).view(-1, size)
        groups = [
            judged(ids, own, self.limits)
            for ids, own in zip(clusters, entropies.tolist(), strict=True)
        ]
        scores = [
            self.score(group, i) for group, ids in zip(groups, clusters, strict=True) for i in ids
        ]
        negative = sum(group.shares[i] for group in groups for i in group.negative)
        log = {
            **cluster_metrics(answers, self.equivalence, clusters, undecided, "group", 1),
            "vote/positive": sum(group.positive is not None for group in groups) / len(groups),
            "vote/negative": negative / len(groups),
        }
        made = torch.tensor(scores, dtype=torch.float32, device=rollout.mask.device)
        return RewardOutput(made, log=log, answers=answers)

    def score(self, group: Judged, i: int | None) -> float:
        """Return the score of a completion in cluster ``i`` of a group; None = no answer."""
        if i is None:
            return -1.0
        is_positive, is_negative = i == group.positive, i in group.negative
        if self.scores == "binary":
            return float(is_positive) - float(is_negative)
        limit = self.limits[0] if is_positive else self.limits[2]
        own = group.shares[i] - limit if is_positive or is_negative else 0.0
        return own - self.entropy_weight * group.excess[i]
