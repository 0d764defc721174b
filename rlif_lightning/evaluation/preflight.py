"""Preflight: before hours of training, can these rewards work on the starting policy?

Read in this order: the two formulas (pure), ``examine`` (completion records -> figures),
``judge_head`` and ``judge_groups`` (figures -> verdicts in words). The thresholds are ours.
``preflight_sample.py`` samples and ``preflight_report.py`` prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.answers.final_answers import cluster
from rlif_lightning.answers.gold_answers import is_right
from rlif_lightning.masked import masked_mean, masked_sum
from rlif_lightning.rewards.voting import majority_answers, vote_shares

THRESHOLDS = {
    "min_mixed": (
        0.2,
        "share of groups with different answers, below which the vote has next to nothing to teach",
    ),
    "min_answered": (
        0.5,
        "share of completions that end and have an answer, below which most of a group is wasted",
    ),
    "min_varied": (
        0.2,
        "share of groups in which a head's scores differ, below which it gives no signal",
    ),
    "length_link": (
        0.5,
        "|r| of score and length in a group, from which rewarding the head is rewarding length",
    ),
    "agreement_link": (
        0.2,
        "r of score and vote share in a group, from which the head supports the vote (-: opposes"
        " it)",
    ),
    "useful_auc": (
        0.7,
        "chance that the head ranks a right completion above a wrong one of its group, to be of"
        " use",
    ),
    "harmful_auc": (0.45, "the same, below which the head teaches mistakes"),
    "min_majority": (
        0.5,
        "share of groups whose majority is right, below which the vote teaches mistakes",
    ),
    "min_pairs": (50, "pairs of a right and a wrong completion, below which an AUC is not judged"),
}


def limit(name: str) -> float:
    """Return the value of a threshold."""
    return THRESHOLDS[name][0]


def within_group_correlation(x: Tensor, y: Tensor) -> float | None:
    """Compute Pearson's r of x and y, each minus its group's mean, over all completions.

    ``r = Σ dx·dy / sqrt(Σ dx² · Σ dy²)``: what differs between groups plays no part, as in
    advantages.

    Args:
        x: ``[P, G]``; a completion counts where x and y are not NaN.
        y: ``[P, G]``.

    Returns:
        r in [-1, 1]; None where x or y is the same inside every group.
    """
    valid = ~(x.isnan() | y.isnan())
    dx, dy = (
        torch.where(valid, v - masked_mean(v, valid, -1).unsqueeze(-1), 0.0)
        for v in (x.double(), y.double())
    )
    # Rounding of a group's mean is no variation.
    spread = [float(d.square().sum()) for d in (dx, dy)]
    scale = [float(masked_sum(v.double().square(), valid)) for v in (x, y)]
    if any(s <= 1e-14 * max(size, 1e-300) for s, size in zip(spread, scale, strict=True)):
        return None
    return float((dx * dy).sum() / (spread[0] * spread[1]) ** 0.5)


def within_group_auc(scores: Tensor, correct: Tensor) -> tuple[float | None, int]:
    """Compute the chance that a right completion scores above a wrong one of its group.

    Pooled by pairs: every (right, wrong) pair of every group counts once. Groups that are all right
    or all wrong have no pair.

    Args:
        scores: ``[P, G]``; NaN = does not apply, in no pair.
        correct: ``[P, G]`` bool.

    Returns:
        The AUC in [0, 1], None without a pair; and the number of pairs.
    """
    valid = ~scores.isnan()
    pairs = (correct & valid).unsqueeze(2) & (~correct & valid).unsqueeze(1)
    ahead = scores.double().unsqueeze(2) - scores.double().unsqueeze(1)
    wins = (ahead > 0).double() + 0.5 * (ahead == 0).double()
    number = int(pairs.sum())
    return (float(masked_sum(wins, pairs)) / number if number else None), number


@dataclass(frozen=True)
class HeadFindings:
    """What one head's scores look like inside groups; ``verdict`` is good | caution | poor.

    A head of negative weight is judged by minus its scores, which is what it rewards.
    """

    name: str
    weight: float
    varied: float
    agreement_correlation: float | None
    length_correlation: float | None
    auc: float | None
    pairs: int
    verdict: str = ""
    why: str = ""


@dataclass(frozen=True)
class Findings:
    """Shares over the sampled groups; those of right answers are None without labels."""

    groups: int
    group_size: int
    mixed: float
    unanimous: float
    agreement: float
    parseable: float
    ended: float
    mean_length: float
    accuracy: float | None
    majority_right: float | None
    verdict: str
    why: str
    heads: list[HeadFindings]


def examine(
    records: list[dict[str, Any]],
    answers: Sequence[str | None],
    gold: Sequence[Sequence[str]] | None,
    weights: dict[str, float],
    group_size: int,
    equivalence: str = "exact",
) -> Findings:
    """Compute figures and verdicts from the completions of whole groups.

    Args:
        records: B completion records (``completion_rows.py``), prompt-major.
        answers: B final answers, None where there is none.
        gold: the acceptable answers of each of P problems, or None without labels.
        weights: of the heads, by name.
        group_size: G.
        equivalence: when two answers are equal, as of `AnswerChecker`.
    """
    groups = [list(answers[i : i + group_size]) for i in range(0, len(answers), group_size)]
    ids = [
        [i for i in cluster(group, equivalence=equivalence) if i is not None] for group in groups
    ]
    lengths = _grid([record["length"] for record in records], group_size)
    votes = vote_shares(answers, group_size, equivalence=equivalence).view(-1, group_size)
    correct = majority = None
    if gold is not None:
        correct, majority = _judged(answers, gold, group_size, equivalence)
    heads = []
    for name, weight in weights.items():
        scores = _grid([record["scores"][name] for record in records], group_size)
        heads.append(judge_head(_head(name, weight, scores, votes, lengths, correct)))
    findings = Findings(
        groups=len(groups),
        group_size=group_size,
        mixed=_mean([len(set(group)) > 1 for group in ids]),
        unanimous=_mean([len(group) > 1 and len(set(group)) == 1 for group in ids]),
        agreement=float(votes.amax(1).mean()),
        parseable=_mean([answer is not None for answer in answers]),
        ended=_mean([record["ended"] for record in records]),
        mean_length=float(lengths.mean()),
        accuracy=None if correct is None else float(correct.double().mean()),
        majority_right=majority,
        verdict="",
        why="",
        heads=heads,
    )
    return judge_groups(findings)


def _judged(
    answers: Sequence[str | None], gold: Sequence[Sequence[str]], group_size: int, equivalence: str
) -> tuple[Tensor, float]:
    """Return which answers are right, ``[P, G]`` bool, and how often the majority's is."""
    each = [gold[number // group_size] for number in range(len(answers))]
    verdicts = [is_right(a, g, equivalence) for a, g in zip(answers, each, strict=True)]
    chosen = zip(majority_answers(answers, group_size, equivalence), gold, strict=True)
    majority = _mean([is_right(a, g, equivalence) for a, g in chosen])
    return torch.tensor(verdicts).view(-1, group_size), majority


def _head(
    name: str, weight: float, scores: Tensor, votes: Tensor, lengths: Tensor, correct: Tensor | None
) -> HeadFindings:
    scores = -scores if weight < 0 else scores
    filled_low, filled_high = scores.nan_to_num(torch.inf), scores.nan_to_num(-torch.inf)
    auc, pairs = (None, 0) if correct is None else within_group_auc(scores, correct)
    return HeadFindings(
        name,
        weight,
        float((filled_high.amax(1) - filled_low.amin(1) > 1e-6).double().mean()),
        within_group_correlation(scores, votes),
        within_group_correlation(scores, lengths),
        auc,
        pairs,
    )


def judge_head(head: HeadFindings) -> HeadFindings:
    """Add the verdict.

    Poor: no signal, or the wrong one. Caution: works, but may be hacked or says little.
    """
    poor, caution, good = [], [], []
    if head.varied < limit("min_varied"):
        poor.append(f"gives no signal: its scores differ in {head.varied:.0%} of the groups only")
    length, agreement = head.length_correlation or 0.0, head.agreement_correlation or 0.0
    if abs(length) >= limit("length_link"):
        kind = "longer" if length > 0 else "shorter"
        caution.append(
            f"prefers {kind} completions (r = {length:+.2f}): expect training on it to change"
            " length"
        )
    if agreement <= -limit("agreement_link"):
        caution.append(f"works against the vote (r = {agreement:+.2f})")
    elif agreement >= limit("agreement_link"):
        good.append(f"supports the vote (r = {agreement:+.2f})")
    else:
        caution.append(
            f"is unrelated to the vote (r = {agreement:+.2f}): rewarded beside one, it pulls"
            " elsewhere"
        )
    if head.auc is not None and head.pairs < limit("min_pairs"):
        caution.append(
            f"only {head.pairs} pairs of a right and a wrong completion: too few to judge it by"
            " labels"
        )
    elif head.auc is not None:
        kind, text = _judge_auc(head.auc)
        {"poor": poor, "caution": caution, "good": good}[kind].append(text)
    verdict = "poor" if poor else "caution" if caution else "good"
    return replace(head, verdict=verdict, why="; ".join([*poor, *caution, *good]))


def _judge_auc(auc: float) -> tuple[str, str]:
    if auc < limit("harmful_auc"):
        return "poor", f"ranks wrong completions first (AUC {auc:.2f})"
    if auc < limit("useful_auc"):
        return "caution", f"hardly tells right from wrong (AUC {auc:.2f})"
    return "good", f"tells right from wrong (AUC {auc:.2f})"


def judge_groups(found: Findings) -> Findings:
    """Add the verdict on the sampled groups as a whole."""
    poor = []
    if found.mixed < limit("min_mixed"):
        poor.append(
            f"groups disagree in {found.mixed:.0%} of the problems only: take harder (or, if"
            " nothing is parsed, easier)"
            " problems, a higher temperature or larger groups"
        )
    if found.ended < limit("min_answered"):
        poor.append(
            f"{1 - found.ended:.0%} of the completions are cut: raise model.sampling.max_new_tokens"
        )
    if found.parseable < limit("min_answered"):
        poor.append(
            f"{found.parseable:.0%} of the completions have an answer: change the prompt or the"
            " extractor"
        )
    if found.majority_right is not None and found.majority_right < limit("min_majority"):
        poor.append(
            f"the majority is right in {found.majority_right:.0%} of the groups: a vote would"
            " teach mistakes"
        )
    caution = []
    if (
        found.majority_right is not None
        and found.accuracy is not None
        and found.majority_right <= found.accuracy
    ):
        caution.append(
            "the majority is not right more often than a sample: a vote has nothing to gain"
        )
    verdict = "poor" if poor else "caution" if caution else "good"
    why = (
        "; ".join([*poor, *caution])
        or "groups disagree, end and can be parsed: there is something to vote on"
    )
    return replace(found, verdict=verdict, why=why)


def _grid(values: list[Any], group_size: int) -> Tensor:
    """Return ``[P, G]`` float64, None as NaN."""
    return (
        torch.tensor([torch.nan if v is None else float(v) for v in values])
        .double()
        .view(-1, group_size)
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
