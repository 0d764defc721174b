"""Reward heads inside of others: ``HoldsHead``, which holds one, and how they are found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.judges.asking import COST_COLUMNS, cost_of
from rlif_lightning.judges.base import RunModels
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead, seen_by
from rlif_lightning.rewards.received import received


def heads_in(head: RewardHead) -> Iterator[RewardHead]:
    """Yield a head, and every head that it holds as a submodule, at any depth."""
    yield from (part for part in head.modules() if isinstance(part, RewardHead))


def heads_behind(head: RewardHead) -> Iterator[RewardHead]:
    """Yield a head, and those whose output it changes and returns; a rubric's are not among them.

    Example: a ``CheckerReward`` that multiplies a judge's score, then the judge's head.
    """
    yield head
    if isinstance(head, HoldsHead):
        yield from heads_behind(head.head)


def together(
    outputs: Mapping[str, RewardOutput],
) -> tuple[dict[str, float], dict[str, Sequence[Any]]]:
    """Return what the heads of criteria log and show; the costs of their judges are summed.

    A figure that another criterion logs is named ``criterion/<criterion>/<figure>``, and a column
    ``<criterion>_<column>``.

    Args:
        outputs: of the heads, by criterion.
    """
    log = cost = cost_of([output.log for output in outputs.values()])
    columns: dict[str, Sequence[Any]] = {}
    for name, output in outputs.items():
        for figure, value in output.log.items():
            if figure not in cost:
                log = log | {f"criterion/{name}/{figure}" if figure in log else figure: value}
        for column, values in output.columns.items():
            if column not in columns:
                columns[column] = values
            elif column in COST_COLUMNS:
                columns[column] = [a + b for a, b in zip(columns[column], values, strict=True)]
            else:
                columns[f"{name}_{column}"] = values
    return log, columns


class HoldsHead:
    """A part that asks another reward head.

    Args:
        head: the reward head.

    Raises:
        ValueError: a head that gives no scores.
    """

    needs_gold: bool
    columns: Sequence[str]
    gold_columns: Sequence[str]

    def __init__(self, head: RewardHead):
        if not head.gives_scores:
            raise ValueError(f"head={type(head).__name__} gives no scores; use one that does")
        self.head = head
        self.needs_gold, self.columns = head.needs_gold, tuple(head.columns)
        self.gold_columns = head.gold_columns

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        head = self.head
        head.check(problems if head.needs_gold else problems.only(head.columns), group_size)

    def check_visits(self, most: float) -> None:
        self.head.check_visits(most)

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        return self.head.check_gold(column, values, where)

    def use_table(self, table: PromptTable, name: str) -> None:
        self.head.use_table(table, name)

    def bind(self, models: RunModels) -> None:
        self.head.bind(models)

    @property
    def waits(self) -> bool:
        return self.head.waits

    def abandon(self) -> None:
        self.head.abandon()

    def start(self, rollout: Rollout) -> None:
        self.head.start(seen_by(self.head, rollout))

    def ask_head(self, rollout: Rollout) -> RewardOutput:
        """Return the head's output, checked; what it takes out has no score."""
        output = received(type(self.head).__name__, self.head(seen_by(self.head, rollout)), rollout)
        if output.keep_mask is None:
            return output
        return replace(output, scores=output.scores.masked_fill(~output.keep_mask, float("nan")))
