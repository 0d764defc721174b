"""What CollapseGuard remembers of each problem: its last majorities, and how large they were."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rlif_lightning.data.prompt_table import PromptColumn, PromptTable
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Rollout
from rlif_lightning.rewards.flip_weight import NONE, WINDOW, majority_number
from rlif_lightning.rewards.voting import majorities

OWNER = "CollapseGuard"


def majority_column(table: PromptTable) -> PromptColumn:
    """Return the guard's column: the last majority's checksum, and the last ratios, newest first.

    Both are as of ``rewards/flip_weight.py``.
    """
    return table.column("majorities", OWNER, 1 + WINDOW)


def majority_figures(
    rollout: Rollout,
    answers: Sequence[str | None],
    column: PromptColumn,
    equivalence: str = "exact",
) -> dict[str, float]:
    """Write a rollout's majorities into the column, and return its figures (a collective).

    A problem's majority is the answer of its largest cluster. That no completion has an answer is
    a majority of its own. The ratio is the cluster's share of all completions. Source of both
    figures: https://arxiv.org/abs/2605.19444; what counts without an answer is ours.

    A worked example: problem 4 has the majorities 3, 3, 5, 3, 3 with ratios 1/2, 1/2, 1/4, 3/4 and
    1. Its flips are no, yes, yes, no. Its windowed ratio at the last visit is their mean, 3/5.

    Args:
        rollout: P problems with G completions each.
        answers: the B final answers, None = none found.
        column: of :func:`majority_column`.
        equivalence: when two answers of a group are equal (``clusters.equivalent``).

    Returns:
        ``vote/flip_rate``: share of the problems that were visited before whose majority is another
        than at the visit before, NaN where none was visited before; ``vote/majority_ratio``: mean
        over problems of their mean ratio over their last 5 visits, this one included.
    """
    rows, size = rollout.prompts.index.tolist(), rollout.group_size
    before = column.numbers(rows, [NONE] * (1 + WINDOW))
    now = majorities(answers, size, equivalence)
    visits: dict[int, tuple[float, ...]] = {}
    flips, returned, total = 0, 0, 0.0
    for row, past, (answer, votes) in zip(rows, before.tolist(), now, strict=True):
        name = majority_number(answer, equivalence)
        was_here = past[1] != NONE
        returned += was_here
        flips += was_here and past[0] != name
        ratios = [votes / size, *past[1:]][:WINDOW]
        known = [each for each in ratios if each != NONE]
        total += sum(known) / len(known)
        visits[row] = (name, *ratios)  # a problem that a batch has twice is written once
    for row, value in visits.items():
        column.put(row, value)
    counts = torch.tensor([flips, returned, total, len(rows)], dtype=torch.float64)
    flips, returned, total, problems = all_rank_sum(counts.to(rollout.mask.device)).tolist()
    return {
        "vote/flip_rate": flips / returned if returned else math.nan,
        "vote/majority_ratio": total / problems,
    }
