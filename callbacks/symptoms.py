"""Figures that show collapse and that nothing else logs; no labels, the same on every rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.answers.final_answers import answer_name
from rlif_lightning.masked import masked_mean
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Rollout
from rlif_lightning.rewards.voting import vote_shares

NGRAM = 4
# Answers are counted over ranks by a checksum. A collision makes the top answer larger, rarely and
# little.
_BUCKETS = 1 << 16
_PRIME = 1_000_003


def repeated_ngrams(completion_ids: Tensor, mask: Tensor, n: int = NGRAM) -> Tensor:
    """Count the n-grams that appeared before in the same completion.

    Args:
        completion_ids: ``[B, T]`` token ids, right-padded.
        mask: ``[B, T]`` bool.
        n: tokens of an n-gram.

    Returns:
        ``[2]`` int64: repeated n-grams and all n-grams, over the whole batch.
    """
    num_grams = completion_ids.shape[1] - n + 1
    if num_grams < 1:
        return torch.zeros(2, dtype=torch.int64, device=mask.device)
    valid = mask.unfold(1, n, 1).all(-1)  # no n-gram runs through an observation
    grams = torch.zeros_like(completion_ids[:, :num_grams])
    for k in range(n):
        grams = grams * _PRIME + completion_ids[:, k : k + num_grams] + 1
    # Positions outside the mask get values that are all different.
    nothing = torch.iinfo(torch.int64).min + torch.arange(num_grams, device=mask.device)
    ordered = torch.where(valid, grams, nothing).sort(-1).values
    return torch.stack([(ordered[:, 1:] == ordered[:, :-1]).sum(), valid.sum()])


def answer_counts(answers: Sequence[str | None], equivalence: str = "exact") -> Tensor:
    """Count how many completions gave each answer, by the answer's checksum.

    Units are left out. The result is ``[65536]`` int64.
    """
    found = [
        zlib.crc32(answer_name(answer, equivalence).encode()) % _BUCKETS
        for answer in answers
        if answer is not None
    ]
    return torch.bincount(torch.tensor(found, dtype=torch.int64), minlength=_BUCKETS)


def alignment(advantages: Tensor, votes: Tensor) -> Tensor:
    """Return the sums for the correlation of advantage and vote inside groups (:func:`symptoms`).

    Args:
        advantages: ``[P, G]``; NaN where a head dropped the completion, which is left out.
        votes: ``[P, G]`` shares of the group that agree; groups in which they are all equal are
            left out.

    Returns:
        ``[3]`` float64: sums of products, squared advantages and squared votes, each minus its
        group's mean.
    """
    kept = ~advantages.isnan()
    mixed = votes.where(kept, math.inf).amin(-1) < votes.where(kept, -math.inf).amax(-1)
    a, v = (
        torch.where(kept, values - masked_mean(values, kept, -1).unsqueeze(-1), 0.0)
        for values in (advantages.double(), votes.double())
    )
    return torch.stack([(a * v)[mixed].sum(), a[mixed].square().sum(), v[mixed].square().sum()])


def symptoms(
    rollout: Rollout, answers: Sequence[str | None], advantages: Tensor, equivalence: str = "exact"
) -> dict[str, float]:
    """Return figures over all ranks (a collective).

    Args:
        rollout: P prompts with G completions each.
        answers: the B final answers, None = none found.
        advantages: ``[B, T]``.
        equivalence: when two answers of a group are equal (``clusters.equivalent``).

    Returns:
        ``rollout/repetition``: repeated 4-grams as a share of all; ``vote/top_answer``: share of
        all completions, over all prompts, that give the most frequent answer;
        ``guard/vote_alignment``: correlation, inside groups, of a completion's advantage with the
        share of its group that gives its answer (NaN where no group is mixed).
    """
    shape = (rollout.num_prompts, rollout.group_size)
    votes = vote_shares(
        answers, rollout.group_size, denominator="group", equivalence=equivalence
    ).to(advantages.device)
    means = masked_mean(advantages, rollout.mask, -1).where(rollout.mask.any(-1), math.nan)
    product, squares, vote_squares = all_rank_sum(
        alignment(means.view(shape), votes.view(shape))
    ).tolist()
    repeated, grams = all_rank_sum(repeated_ngrams(rollout.completion_ids, rollout.mask)).tolist()
    device = rollout.mask.device
    counts = all_rank_sum(answer_counts(answers, equivalence).to(device))
    num_completions = all_rank_sum(torch.tensor(len(answers), device=device))
    return {
        "rollout/repetition": repeated / max(grams, 1),
        "vote/top_answer": float(counts.max() / num_completions),
        "guard/vote_alignment": product / math.sqrt(squares * vote_squares)
        if squares * vote_squares > 0
        else math.nan,
    }
