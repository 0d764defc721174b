"""Reward heads and the set of them that a run uses.

A head sees whole groups and answers one score per completion. The set keeps the heads' scores apart, hides the gold
answers from heads that do not ask for them, applies gates, and turns any failure into one clear error.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlif_lightning.batch import RewardOutput, Rollout


class RewardHead(nn.Module, ABC):
    """Scores the completions of a rollout. Subclass it, write ``forward``, name the class in YAML.

    State that must survive a restart goes into buffers. A head may hold a model of its own.

    Attributes:
        needs_gold: whether the head reads the gold answers; False hides that column from it.
    """

    needs_gold: bool = False

    @abstractmethod
    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions of whole groups; NaN = does not apply."""


@dataclass(frozen=True)
class Gate:
    """Counts a head only where another head's score passes a threshold.

    Args:
        head: name of the other head.
        at_least: lowest score of the other head at which this one counts.
    """

    head: str
    at_least: float


@dataclass(frozen=True)
class WeightedReward:
    """A reward head with its place in the total.

    Args:
        head: the reward head.
        weight: of its normalised score in the advantage; 0 = measured and logged, not trained on.
        gate: count it only for completions whose other head passes a threshold.
    """

    head: RewardHead
    weight: float = 1.0
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of a reward must be a finite number")


class RewardSet(nn.Module):
    """The named reward heads of a run.

    Args:
        rewards: name -> head with weight and gate; names appear in the logs as ``reward/<name>/...``.
        answer_column: the gold answers' column, hidden from heads that do not need it.

    Raises:
        ValueError: no reward, all weights 0, a name that cannot be logged, or a gate on an unknown head.
    """

    def __init__(self, rewards: Mapping[str, WeightedReward], answer_column: str | None = None):
        super().__init__()
        if not any(reward.weight for reward in rewards.values()):
            raise ValueError(f"rewards={list(rewards)}: at least one reward with a weight other than 0 is needed")
        for name, reward in rewards.items():
            if not name.isidentifier():
                raise ValueError(f"reward name {name!r} must be a plain identifier (letters, digits, _)")
            if reward.gate is not None and reward.gate.head not in rewards:
                raise ValueError(f"gate of reward {name!r} names {reward.gate.head!r}; known heads: {sorted(rewards)}")
        self.heads = nn.ModuleDict({name: reward.head for name, reward in rewards.items()})
        self.settings = dict(rewards)
        self.answer_column = answer_column

    @property
    def names(self) -> list[str]:
        return list(self.settings)

    @property
    def weights(self) -> Tensor:
        """``[R]`` float32 on the CPU."""
        return torch.tensor([reward.weight for reward in self.settings.values()])

    def set_weight(self, name: str, weight: float) -> None:
        """Change a head's weight from the next rollout on (for callbacks; not kept in checkpoints)."""
        self.settings[name] = replace(self.settings[name], weight=weight)

    @torch.no_grad()
    def forward(self, rollout: Rollout) -> dict[str, RewardOutput]:
        """Every head's answer, gates applied.

        Raises:
            RuntimeError: a head raised, or returned a wrong shape or an infinite score; names the head and the group.
        """
        outputs = {name: self._ask(name, rollout) for name in self.names}
        gated = {}
        for name, output in outputs.items():
            gate = self.settings[name].gate
            if gate is not None:
                passes = outputs[gate.head].scores >= gate.at_least
                output = replace(output, scores=torch.where(passes, output.scores, torch.nan))
            gated[name] = output
        return gated

    def _ask(self, name: str, rollout: Rollout) -> RewardOutput:
        head = self.heads[name]
        visible = rollout
        if not head.needs_gold:
            visible = replace(rollout, prompts=rollout.prompts.without(self.answer_column))
        try:
            output = head(visible)
        except Exception as error:
            raise RuntimeError(
                f"reward head {name!r} ({type(head).__name__}) raised {type(error).__name__}: {error}\n"
                f"while scoring completions such as {_excerpt(rollout)}"
            ) from error
        expected = rollout.mask.shape[:1]
        if output.scores.shape != expected:
            raise RuntimeError(
                f"reward head {name!r} returned scores of shape {tuple(output.scores.shape)}; one per completion, "
                f"{tuple(expected)}, is needed"
            )
        if output.scores.isinf().any():
            row = int(output.scores.isinf().nonzero()[0])
            raise RuntimeError(f"reward head {name!r} returned an infinite score for {rollout.texts[row]!r}")
        return replace(output, scores=output.scores.float())


def _excerpt(rollout: Rollout, width: int = 200) -> str:
    return "; ".join(repr(text[:width]) for text in list(rollout.texts)[:4])
