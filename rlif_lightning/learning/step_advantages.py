"""Advantages of a completion's steps: what each step adds to the score of the one before.

Steps with the scores 1/4, 3/4, 1/2 (``StepDelta``, by ``baseline``):

    delta    -1/4   1/2  -1/4    minus the step before; the first minus the last
    end      -1/4   1/4     0    minus the last
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.learning.advantages import DrGRPO
from rlif_lightning.masked import masked_mean
from rlif_lightning.processes.collectives import all_rank_mean_std
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.step_scores import StepScores

BASELINES = ("delta", "end", "group", "batch")
SINGLE = ("zero", "raw")


@dataclass(frozen=True)
class StepDelta(DrGRPO):
    """Advantages of steps, unnormalised: ``s_t - s_(t-1)``, of the first step ``s_1 - s_T``.

    For heads that score steps (ExpRL's process form, https://arxiv.org/abs/2606.17024). Every token
    of a step has the step's advantage; a completion's steps sum to 0. Other heads count as under
    DrGRPO.

    Args:
        baseline: delta | end | group | batch: what is subtracted from a step's score: that of the
            step before (of the first step: of the last), that of the last step, or the mean over
            the tokens of the group, or of the batch of all data ranks.
        single_segment: zero | raw: the advantage of a completion of one step under delta and end:
            0, as the formula says, or its score, as the authors' code has it.

    Raises:
        ValueError: an unknown name.
    """

    baseline: str = "delta"
    single_segment: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("baseline", BASELINES), ("single_segment", SINGLE)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}"
                )

    def check(self, group_size: int) -> None:
        """Refuse nothing: a completion's steps are compared with each other."""

    def of_steps(self, steps: StepScores, mask: Tensor, group_size: int) -> Tensor:
        """Return ``[B, T]`` float64 advantages of all tokens (a collective under ``batch``).

        Args:
            steps: of B completions.
            mask: ``[B, T]`` bool.
            group_size: G.

        Returns:
            0 outside the mask and in completions without scores.
        """
        scores = steps.scores.double()
        valid = ~scores.isnan()  # [B, S]
        if self.baseline in ("delta", "end"):
            values = self._against_steps(scores, valid.sum(-1, keepdim=True))
            return spread(values, steps.ends, valid, mask)
        values = spread(scores, steps.ends, valid, mask)
        counted = mask & valid.any(-1, keepdim=True)  # [B, T]
        if self.baseline == "batch":
            mean, _ = all_rank_mean_std(values, counted)
        else:
            groups = (-1, group_size * mask.shape[1])
            mean = masked_mean(values.view(groups), counted.view(groups), -1)  # [P]
            mean = mean.repeat_interleave(group_size).unsqueeze(1)
        return torch.where(counted, values - mean, 0.0)

    def _against_steps(self, scores: Tensor, number: Tensor) -> Tensor:
        """Return ``[B, S]`` scores minus those of other steps of the same completion."""
        last = scores.gather(1, (number - 1).clamp(min=0))  # [B, 1]
        if self.baseline == "end":
            values = scores - last
        else:
            values = scores - torch.cat([last, scores[:, :-1]], 1)
        return values if self.single_segment == "zero" else torch.where(number == 1, scores, values)


def spread(values: Tensor, ends: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    """Return ``[B, T]``: each token's step's value; 0 outside the mask and where there is none.

    Args:
        values: ``[B, S]``.
        ends: ``[B, S]`` positions of steps' last tokens.
        valid: ``[B, S]`` bool: the steps that there are.
        mask: ``[B, T]`` bool.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    beyond = (positions > ends.unsqueeze(-1)) & valid.unsqueeze(-1)  # [B, S, T]
    number = beyond.sum(1).clamp(max=values.shape[1] - 1)  # [B, T]
    return torch.where(mask & valid.any(-1, keepdim=True), values.gather(1, number), 0.0)


def step_parts(
    rollout: Rollout, outputs: Mapping[str, RewardOutput], advantage: Any, weights: Tensor
) -> Tensor | None:
    """Return the advantages of every head's steps, with its weight (a collective under ``batch``).

    A completion whose score does not apply (its head's gate, or another head drops it) has none.

    Args:
        rollout: B completions.
        outputs: of R heads.
        advantage: the estimator.
        weights: ``[R]`` reward weights, or ``[R, P]`` where they differ between groups.

    Returns:
        ``[R, B, T]`` float64, 0 for heads without steps; None where there are no steps, or the
        estimator knows none.
    """
    if not isinstance(advantage, StepDelta) or all(o.steps is None for o in outputs.values()):
        return None
    parts = torch.zeros((len(outputs), *rollout.mask.shape), dtype=torch.float64)
    parts = parts.to(rollout.mask.device)
    for number, output in enumerate(outputs.values()):
        if output.steps is not None:
            scores = output.steps.scores.masked_fill(output.scores.isnan().unsqueeze(1), torch.nan)
            steps = StepScores(output.steps.ends, scores)
            parts[number] = advantage.of_steps(steps, rollout.mask, rollout.group_size)
    factors = weights if weights.ndim == 1 else weights.repeat_interleave(rollout.group_size, 1)
    return parts * factors.view(len(outputs), -1, 1)
