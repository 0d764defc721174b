"""``FlipWeight``: a vote counts less where its problem's majority moves from visit to visit."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlif_lightning.answers.final_answers import answer_name
from rlif_lightning.data.prompt_table import PromptColumn, PromptTable
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.held_head import HoldsHead
from rlif_lightning.rewards.voting import ClusterVote, majorities

WINDOW = 5  # visits
NONE = -1.0  # no visit, or no answer
LEAST = 0.1  # of a weight
_FIXED = 3  # numbers of a history beside its ratios


def majority_number(answer: str | None, equivalence: str) -> float:
    """Return a checksum that stands for a majority, which may be long; rarely do two share one."""
    return NONE if answer is None else float(zlib.crc32(answer_name(answer, equivalence).encode()))


class History(NamedTuple):
    """What is known of a problem after a visit.

    Attributes:
        majority: the number of its last majority.
        has_flipped: 1 once two visits in a row had different majorities.
        trusted_less: how often it counted less for never having flipped.
        ratios: the majority's share of all completions at the last 5 visits, newest first.
    """

    majority: float
    has_flipped: float
    trusted_less: float
    ratios: tuple[float, ...]

    @property
    def is_settled(self) -> bool:
        """Whether 5 visits or more have seen no flip."""
        return not self.has_flipped and NONE not in self.ratios


def visited(past: Sequence[float], majority: float, ratio: float) -> tuple[History, bool]:
    """Return a problem's history after a visit, and whether its majority is another than before.

    Args:
        past: the numbers of its history, NONE throughout if there was no visit.
        majority: of this visit.
        ratio: the majority's share of the group's G completions.
    """
    ratios = tuple(past[_FIXED:])
    was_here = ratios[0] != NONE
    flips = was_here and past[0] != majority
    before = (past[1], past[2]) if was_here else (0.0, 0.0)
    return History(majority, max(before[0], float(flips)), before[1], (ratio, *ratios[:-1])), flips


class FlipWeight(HoldsHead, RewardHead):
    """Multiplies a vote's weight in each group by how steady its problem's majority was.

    TTRL-Guard's reward scaling (https://arxiv.org/abs/2605.19444, FRS), as in its released code:

        w = 1 - flip_cost * flip                       flip: another majority than at the last visit
        w *= 1 - sure_cost      if it flips although its share of the group is above sure_share
        w *= 1 - sure_cost / 2  if 5 visits or more saw no flip, and the mean share over the last 5
                                is above sure_share; at most 5 times for a problem
        w = max(w, 0.1)

    A visit without an answer has a majority of its own. A group of a further draw
    (``model.dynamic_sampling``) is weighed and not remembered. Scores are the vote's. The paper
    multiplies the whole advantage, which is the same where the vote is the only reward. Its two
    other parts, the bonus for minorities and the skipped updates, are left out.

    Logs ``vote/flips`` and ``vote/flip_weight`` in training.

    Args:
        head: the vote.
        flip_cost: what a flip takes of the weight.
        sure_cost: what it takes that a majority is large.
        sure_share: above this share a majority is large.

    Raises:
        ValueError: a number out of [0, 1].
    """

    weighs_groups = True

    def __init__(
        self,
        head: ClusterVote,
        flip_cost: float = 0.5,
        sure_cost: float = 0.3,
        sure_share: float = 0.6,
    ):
        RewardHead.__init__(self)
        HoldsHead.__init__(self, head)
        given = {"flip_cost": flip_cost, "sure_cost": sure_cost, "sure_share": sure_share}
        if not all(0 <= value <= 1 for value in given.values()):
            said = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"{said}: each must lie in [0, 1]")
        self.flip_cost, self.sure_cost, self.sure_share = flip_cost, sure_cost, sure_share
        self.equivalence = head.equivalence
        self.table: PromptTable | None = None
        self.column: PromptColumn | None = None

    def use_table(self, table: PromptTable, name: str) -> None:
        HoldsHead.use_table(self, table, name)
        self.table = table
        self.column = table.column(f"{name}/flips", type(self).__name__, _FIXED + WINDOW)

    def check_visits(self, most: float) -> None:
        """Refuse a run that visits each problem once: every weight would be 1."""
        if most <= 1:
            raise ValueError(
                "FlipWeight compares a problem's majority with that of its last visit, and this run"
                " visits each problem once: every weight would be 1; train on the data for 2 epochs"
                " or more (trainer.max_epochs, or fewer problems), or use the vote alone"
            )
        HoldsHead.check_visits(self, most)

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Return the vote's output, in training with a weight for each of the P groups."""
        output = self.ask_head(rollout)
        if self.table is None or self.column is None or self.table.visit is None:
            return output
        assert output.answers is not None
        weights, flips = self._visit(rollout, output.answers, self.column)
        log = {
            **output.log,
            "vote/flips": sum(flips) / len(flips),
            "vote/flip_weight": float(weights.mean()),
        }
        if output.group_weight_factor is not None:
            weights = weights * output.group_weight_factor
        return replace(output, group_weight_factor=weights, log=log)

    def _visit(
        self, rollout: Rollout, answers: Sequence[str | None], column: PromptColumn
    ) -> tuple[Tensor, list[bool]]:
        """Return ``[P]`` float64 weights and which majorities flip, and write what was seen."""
        rows, size = rollout.prompts.index.tolist(), rollout.group_size
        past = column.numbers(rows, [NONE] * column.width).tolist()
        now = majorities(answers, size, self.equivalence)
        weights, flips, histories = [], [], {}
        for row, numbers, (answer, votes) in zip(rows, past, now, strict=True):
            number = majority_number(answer, self.equivalence)
            history, flip = visited(numbers, number, votes / size)
            weight, is_less = self.weight(history, flip)
            history = history._replace(trusted_less=history.trusted_less + is_less)
            histories[row] = (*history[:_FIXED], *history.ratios)
            weights.append(weight)
            flips.append(flip)
        for row, numbers in histories.items() if self.training else ():
            column.put(row, numbers)  # once, though a batch may have a problem twice
        made = torch.tensor(weights, dtype=torch.float64, device=rollout.mask.device)
        return made, flips

    def weight(self, history: History, flips: bool) -> tuple[float, bool]:
        """Return a group's weight, and whether it counts less for never having flipped."""
        weight = 1 - self.flip_cost * flips
        if flips and history.ratios[0] > self.sure_share:
            weight *= 1 - self.sure_cost
        mean = sum(history.ratios) / WINDOW
        is_less = history.is_settled and mean > self.sure_share and history.trusted_less < WINDOW
        if is_less:
            weight *= 1 - self.sure_cost / 2
        return max(weight, LEAST), is_less
