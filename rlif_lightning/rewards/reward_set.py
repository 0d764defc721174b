"""The set of reward heads that a run uses.

It keeps the heads' scores apart, hides every column that a head did not name, and turns any failure
into one clear error. It applies the options of each reward: its gate, ``length`` and
``spread_floor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.masked import MIN_SPREAD, masked_std
from rlif_lightning.processes.collectives import all_rank_sum, is_collectives_error
from rlif_lightning.records import RewardOutput, Rollout, overlap
from rlif_lightning.rewards.base import WeightedReward, seen_by
from rlif_lightning.rewards.functional import without_length
from rlif_lightning.rewards.received import (
    kept_completions,
    left_as_it_is,
    only_scores_of,
    received,
)


class RewardSet(nn.Module):
    """The named reward heads of a run.

    A head's usual spread (``spread_floor``) is learned in training only and kept in checkpoints.

    Args:
        rewards: name -> head with weight and gate; names appear in the logs as
            ``reward/<name>/...``.
        answer_column: the gold answers' column, which heads that do not need it cannot name.
        is_needed: whether a reward with a weight must be there.

    Raises:
        ValueError: no reward that is needed, all weights 0, a name that cannot be logged, a gate on
            an unknown head, or a label-free head that names a column of gold answers.
    """

    def __init__(
        self,
        rewards: Mapping[str, WeightedReward],
        answer_column: str | None = None,
        is_needed: bool = True,
    ):
        super().__init__()
        if is_needed and not any(reward.weight for reward in rewards.values()):
            raise ValueError(
                f"rewards={list(rewards)}: at least one reward with a weight other than 0 is needed"
            )
        for name, reward in rewards.items():
            if not name.isidentifier():
                raise ValueError(
                    f"reward name {name!r} must be a plain identifier (letters, digits, _)"
                )
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"reward name {name!r} is an attribute of torch's modules; choose another"
                )
            if reward.gate is not None and reward.gate.head not in rewards:
                raise ValueError(
                    f"gate of reward {name!r} names {reward.gate.head!r}; known heads:"
                    f" {sorted(rewards)}"
                )
        self.heads = nn.ModuleDict({name: reward.head for name, reward in rewards.items()})
        self.settings = dict(rewards)
        self.loggers: dict[str, str] = {}  # figure -> the head that has logged it
        # A head's sum of group spreads, and number of groups.
        self.register_buffer("spreads", torch.zeros(len(rewards), 2, dtype=torch.float64))
        self.hide(answer_column)

    def use_table(self, table: PromptTable) -> None:
        """Let each head ask the run's table for its columns."""
        for name, reward in self.settings.items():
            reward.head.use_table(table, name)

    def hide(self, answer_column: str | None) -> None:
        """Hide the gold answers' column from every head that does not need it.

        Raises:
            ValueError: a label-free head names it, or another column of gold answers.
        """
        self.answer_column = answer_column
        for name, reward in self.settings.items():
            for column in reward.head.label_free_columns:
                if seen := next(
                    (gold for gold in self.gold_columns if overlap(column, gold)), None
                ):
                    raise ValueError(
                        f"reward {name!r} names the column {column!r}, which shows the gold"
                        f" answers of {seen!r} to a head without needs_gold; take it out, or set"
                        " needs_gold = True on the class (of a function, where it is registered)"
                    )

    @property
    def gold_columns(self) -> list[str]:
        """Every column known to hold gold answers: ``answer_column`` and those that heads read."""
        known = [] if self.answer_column is None else [self.answer_column]
        known += [
            column for reward in self.settings.values() for column in reward.head.gold_columns
        ]
        return list(dict.fromkeys(known))

    @property
    def names(self) -> list[str]:
        return list(self.settings)

    @property
    def weights(self) -> Tensor:
        """``[R]`` float32 on the CPU."""
        return torch.tensor([reward.weight for reward in self.settings.values()])

    def set_weight(self, name: str, weight: float) -> None:
        """Change a head's weight from the next rollout on.

        For callbacks; checkpoints do not keep it.
        """
        self.settings[name] = replace(self.settings[name], weight=weight)

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Let every head check the training problems, with the columns that it named.

        Called before anything is sampled.

        Raises:
            ValueError: a head could not score them, or an option of a reward would leave none of
                its scores.
        """
        for name, reward in self.settings.items():
            if reward.length == "neutral" and group_size < 3:
                raise ValueError(
                    f"rewards.{name}.length=neutral keeps nothing of a group of {group_size}: a"
                    " line fits its scores; set data.group_size to 3 or more, or length=keep"
                )
            head = reward.head
            head.check(problems if head.needs_gold else problems.only(head.columns), group_size)

    @torch.no_grad()
    def forward(self, rollout: Rollout) -> dict[str, RewardOutput]:
        """Return every head's output with its options applied.

        A collective where a ``spread_floor`` is set. No score applies to a completion that a head
        drops, and the options do not count it.

        Raises:
            RuntimeError: a head raised, or returned no valid output (``received.py``); names the
                head.
        """
        visible = {name: seen_by(reward.head, rollout) for name, reward in self.settings.items()}
        outputs = self._ask_all(visible)
        self.loggers = {f: name for name in reversed(outputs) for f in outputs[name].log}
        outputs = only_scores_of(kept_completions(rollout, outputs), outputs)
        shape = (rollout.num_prompts, rollout.group_size)
        finished = {}
        for name, output in outputs.items():
            settings = self.settings[name]
            if settings.gate is not None:
                passes = settings.gate.passes(
                    outputs[settings.gate.head].scores, rollout.group_size
                )
                output = replace(output, scores=torch.where(passes, output.scores, torch.nan))
            if settings.length == "neutral":
                neutral = without_length(output.scores.view(shape), rollout.lengths.view(shape))
                output = replace(output, scores=neutral.flatten().float())
            if settings.spread_floor:
                factor = self._group_weight_factor(
                    name, output.scores.view(shape), settings.spread_floor
                )
                own = output.group_weight_factor  # of a head that has one
                factor = factor if own is None else own * factor
                output = replace(output, group_weight_factor=factor)
            finished[name] = output
        return finished

    def _group_weight_factor(self, name: str, scores: Tensor, floor: float) -> Tensor:
        """Return a group's spread in units of the head's floor, at most 1, ``[P]``."""
        std = masked_std(scores.double(), ~scores.isnan(), -1)
        usual = self.get_buffer("spreads")[self.names.index(name)]
        spread = std > MIN_SPREAD
        if self.training:
            usual += all_rank_sum(torch.stack([std[spread].sum(), spread.sum().double()]))
        total, count = usual
        return (
            (std * count / (floor * total).clamp(min=1e-300)).clamp(max=1.0)
            if count
            else torch.ones_like(std)
        )

    def _ask_all(self, visible: Mapping[str, Rollout]) -> dict[str, RewardOutput]:
        try:
            for name, part in visible.items():
                self.settings[name].head.start(part)
            order = sorted(visible, key=lambda name: self.settings[name].head.waits)
            found = {name: self._ask(name, visible[name]) for name in order}
            return {name: found[name] for name in visible}
        except BaseException:
            for name in visible:
                self.settings[name].head.abandon()
            raise

    def _ask(self, name: str, rollout: Rollout) -> RewardOutput:
        with left_as_it_is(name, rollout):
            output = self._answer_of(name, rollout)
        return received(name, output, rollout)

    def _answer_of(self, name: str, rollout: Rollout) -> Any:
        head: Any = self.heads[name]
        try:
            return head(rollout)
        except Exception as error:
            if is_collectives_error(error):
                raise  # another process was lost; no head and no completion is at fault
            raise RuntimeError(
                f"reward head {name!r} ({type(head).__name__}) raised {type(error).__name__}:"
                f" {error}\n"
                f"while scoring completions such as {_excerpt(rollout)}"
            ) from error


def _excerpt(rollout: Rollout, width: int = 200) -> str:
    return "; ".join(repr(text[:width]) for text in list(rollout.texts)[:4])
