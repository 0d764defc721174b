"""``EntityRubric``: an outcome, and beside it the share of gold entities that a completion names.

LongTraceRL, https://arxiv.org/abs/2605.31584; docs/related/longtrace.md says what is published and
what is ours. When a text names an entity: ``data/entity_names.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.data.entity_names import recall, spelled
from rlif_lightning.judges.base import final_text
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.held_head import HoldsHead


def traced_scores(
    outcomes: Tensor, recalls: Tensor, eta: float, is_positive_only: bool = True
) -> Tensor:
    """Mix the outcomes of groups with their entity recalls.

    A recall is divided by the highest one of its group, wrong completions included; where that is
    0, it stays 0. ``(1 - eta) outcome + eta recall``, or the outcome alone where ``eta`` is 0, or
    where the outcome is not above 0 and the rubric is for positive ones only.

    Args:
        outcomes: ``[P, G]``; NaN = no score.
        recalls: ``[P, G]`` in [0, 1]; NaN = the problem has no entities.
        eta: share of the recall, 0 to 1.
        is_positive_only: False also pays the recall of wrong completions.

    Returns:
        ``[P, G]``; NaN where the outcome is, and, unless ``eta`` is 0, where the recall is.
    """
    if not eta:
        return outcomes
    highest = recalls.amax(-1, keepdim=True)  # [P, 1]; NaN for a problem without entities
    relative = torch.where(highest == 0, 0.0, recalls / highest)
    mixed = (1 - eta) * outcomes + eta * relative
    if is_positive_only:
        mixed = torch.where(outcomes <= 0, outcomes, mixed)
    return mixed.masked_fill(recalls.isnan(), torch.nan)


class EntityRubric(HoldsHead, RewardHead):
    """Scores a completion by an outcome, and where that is positive by the entities it names.

    The gold entities of a problem are those on the way to its answer. An entity is named where its
    words stand in the completion (``entity_names.py``), after the end of thought if there is one; a
    thought that has not ended names none. A problem without entities has no score (NaN). Logs
    ``entity/recall``, and ``entity/recall_wrong`` of completions whose outcome is not positive.

    Args:
        head: the outcome, which says whether a completion is right: above 0 = right.
        column: the data set's column of gold entities (lists of texts), or a dotted path.
        eta: share of the entities in the score, 0 to 1 (paper: 0.3); 0 = the outcome alone.
        positive_only: false = additive: wrong completions get their entities' share too. A policy
            can then earn by lists of names; it is there to compare with.

    Raises:
        ValueError: a number out of range, or an outcome that gives no scores.
    """

    def __init__(
        self,
        head: RewardHead,
        column: str = "entities",
        eta: float = 0.3,
        positive_only: bool = True,
    ):
        RewardHead.__init__(self)
        HoldsHead.__init__(self, head)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} must lie in [0, 1]: the entities' share of the score")
        self.column, self.eta, self.positive_only = column, eta, positive_only
        self.needs_gold = True
        self.gold_columns = tuple(dict.fromkeys((column, *head.gold_columns)))

    @property
    def label_free_columns(self) -> Sequence[str]:
        """The outcome's columns that may hold no gold answers."""
        return self.head.label_free_columns

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse what is no list of texts, and count problems without entities."""
        known = list(values)
        said = []
        if column in self.head.gold_columns:
            said.append(self.head.check_gold(column, known, where))
        if column == self.column:
            said.append(_check_entities(column, known, where))
        return "; ".join(filter(None, said)) or None

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions, float32 (a collective)."""
        shape = (rollout.num_prompts, rollout.group_size)
        output = self.ask_head(rollout)
        finals = [
            final_text(rollout.prompts.texts[number // rollout.group_size], text)
            for number, text in enumerate(rollout.texts)
        ]
        found = [
            recall(text, entities or ())
            for text, entities in zip(finals, rollout.column(self.column), strict=True)
        ]
        recalls = torch.tensor(found, dtype=torch.float64, device=rollout.mask.device)
        scores = traced_scores(
            output.scores.view(shape), recalls.view(shape), self.eta, self.positive_only
        )
        return replace(
            output,
            scores=scores.flatten().float(),
            log={**output.log, **_figures(recalls, output.scores)},
            steps=None,  # they would be the outcome's alone
            columns={**output.columns, "entity_recall": found},
        )


def _figures(recalls: Tensor, outcomes: Tensor) -> dict[str, float]:
    """Return mean recalls over all data ranks (a collective)."""
    known = ~recalls.isnan()
    wrong = known & (outcomes <= 0)
    sums = [recalls[which].sum() for which in (known, wrong)]
    counts = [which.sum().double() for which in (known, wrong)]
    total = all_rank_sum(torch.stack([*sums, *counts]))
    names = ("entity/recall", "entity/recall_wrong")
    return dict(zip(names, (total[:2] / total[2:]).tolist(), strict=True))


def _check_entities(column: str, values: Sequence[tuple[int, Any]], where: str) -> str | None:
    """Return how many problems have no entities.

    Raises:
        ValueError: a value is no list of texts, an entity has no letter, or no problem has one.
    """
    named = f"EntityRubric.column={column!r}: "
    without = 0
    for row, entities in values:
        if entities is not None and (
            not isinstance(entities, list | tuple)
            or not all(isinstance(entity, str) for entity in entities)
        ):
            raise ValueError(
                f"{named}row {row} of {where} has {entities!r:.100}, of type"
                f" {type(entities).__name__}; give a list of texts, the names on the way to the"
                " answer"
            )
        without += not entities
        if empty := next((entity for entity in entities or () if not spelled(entity)), None):
            raise ValueError(
                f"{named}row {row} of {where} has the entity {empty!r}, which has no letter and"
                " no digit and could not be found; take it out"
            )
    if without == len(values):
        raise ValueError(f"{named}no row of {where} has entities; name the column that holds them")
    if not without:
        return None
    return f"{named}{without} of {len(values)} rows have no entities: no score, unless eta is 0"
