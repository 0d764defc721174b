"""The vote reward: a completion scores by how much of its group agrees with its final answer.

Read in this order: ``vote_shares`` (the scores), ``vote_metrics`` (figures to log),
``majority_answers`` (for maj@k), ``ClusterVote`` (the reward head). When two answers are equal:
``answers/clusters.py``. The settings of every vote: ``vote_head.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.answers.clusters import (
    ComparesAnswers,
    answer_name,
    cluster,
    open_clusters,
)
from rlif_lightning.answers.extraction import AnswerExtractor, has_box
from rlif_lightning.answers.library import Budget
from rlif_lightning.processes.collectives import all_rank_distinct
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.vote_head import VoteHead, check_vote_settings


def vote_shares(
    answers: Sequence[str | None],
    group_size: int,
    mode: str = "soft",
    denominator: str = "parseable",
    min_parseable: int = 2,
    *,
    entropy_range: tuple[float, float] | None = None,
    equivalence: str = "exact",
) -> Tensor:
    """Return each answer's share of its group's vote, equivalent answers counted together.

    ``soft``: cluster size / denominator. ``hard``: 1 in the largest cluster (ties: in each of the
    largest), else 0; the denominator has no effect. ``gated``: soft, but the whole group gets 0
    where the entropy of its answers lies outside ``entropy_range``. In every mode a missing answer
    gets 0, and so does a group with fewer than ``min_parseable`` answers (alone, an answer would
    have the whole vote).

    Args:
        answers: B final answers, prompt-major; None = none found.
        group_size: G.
        mode: ``soft`` (https://arxiv.org/abs/2505.21444), ``hard`` (TTRL,
            https://arxiv.org/abs/2504.16084) or ``gated`` (EMPO, https://arxiv.org/abs/2504.05812).
        denominator: ``parseable`` (answers found in the group) or ``group`` (G).
        min_parseable: fewest answers for a vote; the default of 2 is our choice.
        entropy_range: lowest and highest entropy of the clusters' distribution, nats; for ``gated``
            only.
        equivalence: when two answers are equal (:func:`clusters.equivalent`).

    Returns:
        ``[B]`` float32 in [0, 1], on the CPU.

    Raises:
        ValueError: an unknown name, a number out of range, or B that is no multiple of G.

    Example:
        >>> vote_shares(["3", "3.0", "5", None], 4).tolist()
        [0.6666666865348816, 0.6666666865348816, 0.3333333432674408, 0.0]
    """
    check_vote_settings(mode, denominator, min_parseable, entropy_range)
    clusters, _ = group_clusters(answers, group_size, equivalence)
    return _shares(clusters, group_size, mode, denominator, min_parseable, entropy_range)


def _shares(
    clusters: Sequence[list[int | None]],
    group_size: int,
    mode: str,
    denominator: str,
    min_parseable: int,
    entropy_range: tuple[float, float] | None,
) -> Tensor:
    shares = []
    for ids in clusters:
        sizes = vote_sizes(ids, min_parseable)
        scores = _soft(sizes, group_size if denominator == "group" else sizes.total())
        if mode == "hard":
            scores = {i: float(size == max(sizes.values())) for i, size in sizes.items()}
        elif (
            entropy_range is not None
            and not entropy_range[0] <= _entropy(sizes) <= entropy_range[1]
        ):
            scores = {}
        shares += [0.0 if i is None else scores.get(i, 0.0) for i in ids]
    return torch.tensor(shares, dtype=torch.float32)


def vote_metrics(
    answers: Sequence[str | None],
    group_size: int,
    denominator: str = "parseable",
    min_parseable: int = 2,
) -> dict[str, float]:
    """Return figures that show how a vote develops, without labels (a collective).

    Args:
        answers: B final answers, prompt-major; None = none found. B >= 1.
        group_size: G.
        denominator: as for ``vote_shares``.
        min_parseable: as for ``vote_shares``.

    Returns:
        ``vote/largest_cluster``: largest soft share of a group, mean over groups (0 below
        ``min_parseable``); ``vote/unanimous``: share of groups with at least ``min_parseable``
        answers, all in one cluster; ``vote/distinct_answers``: number of distinct answers, units
        left out, in the whole batch of all ranks; ``vote/undecided``: share of groups in which
        answers were counted as different because the time of math-verify was used up;
        ``rollout/parseable``: share of completions with an answer.

    Raises:
        ValueError: as ``vote_shares``, or an empty batch.
    """
    check_vote_settings("soft", denominator, min_parseable, None)
    clusters, undecided = group_clusters(answers, group_size, "exact")
    return cluster_metrics(answers, "exact", clusters, undecided, denominator, min_parseable)


def cluster_metrics(
    answers: Sequence[str | None],
    equivalence: str,
    clusters: Sequence[list[int | None]],
    undecided: int,
    denominator: str,
    min_parseable: int,
) -> dict[str, float]:
    """Return the figures of ``vote_metrics`` for answers whose clusters are known."""
    if not clusters:
        raise ValueError("answers is empty: metrics need at least one group")
    sizes = [vote_sizes(ids, min_parseable) for ids in clusters]
    largest = [
        max(_soft(s, len(ids) if denominator == "group" else s.total()).values(), default=0.0)
        for s, ids in zip(sizes, clusters, strict=True)
    ]
    found = [answer_name(answer, equivalence) for answer in answers if answer is not None]
    return {
        "vote/largest_cluster": sum(largest) / len(clusters),
        "vote/unanimous": sum(len(s) == 1 for s in sizes) / len(clusters),
        "vote/distinct_answers": float(all_rank_distinct(found)),
        "vote/undecided": undecided / len(clusters),
        "rollout/parseable": len(found) / len(answers),
    }


def majority_answers(
    answers: Sequence[str | None], group_size: int, equivalence: str = "exact"
) -> list[str | None]:
    """Return the answer each group votes for; None for a group without answers.

    It is the representative (normalised) of the largest cluster.

    Ties go to the cluster that was opened first: the one with the most frequent string, then the
    alphabetically first.

    Args:
        answers: B final answers, prompt-major; None = none found.
        group_size: G.
        equivalence: when two answers are equal (:func:`clusters.equivalent`).

    Raises:
        ValueError: B is no multiple of G, or an unknown equivalence.
    """
    return [winner for winner, _ in majorities(answers, group_size, equivalence)]


def majorities(
    answers: Sequence[str | None], group_size: int, equivalence: str = "exact"
) -> list[tuple[str | None, int]]:
    """Return each group's answer, as :func:`majority_answers` does, and the size of its cluster."""
    winners: list[tuple[str | None, int]] = []
    for group in _groups(answers, group_size):
        ids, representatives = open_clusters(group, equivalence=equivalence)
        sizes = Counter(i for i in ids if i is not None)
        largest = max(sizes, key=lambda i: (sizes[i], -i), default=None)
        winners.append((None, 0) if largest is None else (representatives[largest], sizes[largest]))
    return winners


class ClusterVote(ComparesAnswers, VoteHead):
    """Answer-level reward: the share of the group that agrees with a completion's final answer.

    Logs ``vote/largest_cluster``, ``vote/unanimous``, ``vote/distinct_answers``, ``vote/undecided``
    and ``rollout/parseable``. A second voting head's figures are named ``reward/<head>/<figure>``.

    Args:
        extractor: finds the final answer in a completion's text.
        mode, denominator, min_parseable, entropy_range: as for :class:`VoteHead`.
        format_weight: added to the score of a completion with an answer in a closed ``\\boxed{}``,
            before the advantage normalises the sum (arXiv 2605.22620: 0.1); 0 = off.
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`); numeric is that of arXiv 2605.22620.

    Raises:
        ValueError: an unknown name or a number out of range.
    """

    def __init__(
        self,
        extractor: AnswerExtractor = AnswerExtractor(),
        mode: str = "soft",
        denominator: str = "parseable",
        min_parseable: int = 2,
        entropy_range: tuple[float, float] | None = None,
        format_weight: float = 0.0,
        equivalence: str = "exact",
    ):
        VoteHead.__init__(self, mode, denominator, min_parseable, entropy_range)
        ComparesAnswers.__init__(self, extractor, equivalence)
        if not 0 <= format_weight < math.inf:
            raise ValueError(
                f"format_weight={format_weight} must be a finite number of at least 0; to punish"
                " boxes, use the head Format with a negative weight"
            )
        self.format_weight = format_weight

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions, float32, on the rollout's device.

        Scores lie in [0, 1 + ``format_weight``].
        """
        answers, group_size = [self.extractor(text) for text in rollout.texts], rollout.group_size
        clusters, undecided = group_clusters(answers, group_size, self.equivalence)
        scores = _shares(
            clusters,
            group_size,
            self.mode,
            self.denominator,
            self.min_parseable,
            self.entropy_range,
        )
        if self.format_weight:
            boxed = torch.tensor([has_box(text) for text in rollout.texts])
            scores = scores + self.format_weight * boxed
        given = answers, self.equivalence, clusters, undecided
        log = cluster_metrics(*given, self.denominator, self.min_parseable)
        return RewardOutput(scores.to(rollout.mask.device), log=log, answers=answers)


def _groups(answers: Sequence[str | None], group_size: int) -> list[Sequence[str | None]]:
    if group_size < 1 or len(answers) % group_size:
        raise ValueError(
            f"group_size={group_size} must be at least 1 and divide the {len(answers)} answers"
        )
    return [answers[start : start + group_size] for start in range(0, len(answers), group_size)]


def group_clusters(
    answers: Sequence[str | None], group_size: int, equivalence: str
) -> tuple[list[list[int | None]], int]:
    """Return each group's cluster ids, and the number of undecided groups.

    All groups share one time limit; a group is undecided where the time was used up.
    """
    budget, clusters = Budget(), []
    for group in _groups(answers, group_size):
        budget.next_group()
        clusters.append(cluster(group, budget, equivalence))
    return clusters, len(budget.undecided)


def vote_sizes(ids: list[int | None], min_parseable: int) -> Counter[int]:
    """Return the size of each cluster; nothing where too few completions have an answer."""
    sizes = Counter(i for i in ids if i is not None)
    return sizes if sizes.total() >= min_parseable else Counter()


def _soft(sizes: Counter[int], total: int) -> dict[int, float]:
    return {i: size / total for i, size in sizes.items()}


def _entropy(sizes: Counter[int]) -> float:
    return -sum(size / sizes.total() * math.log(size / sizes.total()) for size in sizes.values())
