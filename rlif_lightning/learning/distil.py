"""DistIL: distillation from a teacher that has read feedback, with credit for later tokens.

The loss of a completion is the sum over its positions of a divergence D_t from the teacher's
distribution (docs/related/distil.md). Its gradient has two terms: that of each D_t, and the
score-function term ``grad log p(y_t) * sum of D_t' over t' > t``, since a token decides which
positions come after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlif_lightning.learning.divergences import divergence, mean_of_others, strict_future
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import WithoutAdvantages
from rlif_lightning.learning.teacher import Teacher
from rlif_lightning.sampling import importance_ratio

CHOICES = {
    "divergence": ("forward_ce", "reverse_kl", "jsd"),
    "credit": ("local", "sequence"),
    "baseline": ("group", "none"),
    "scale": ("none", "remaining"),
}


@dataclass(frozen=True)
class DistIL(WithoutAdvantages):
    """A divergence from a teacher with feedback, instead of a policy loss by advantages.

    https://arxiv.org/abs/2606.05152. Advantages train nothing here, and completions without
    feedback have no loss. `credit: local` with reverse_kl is SDPO, with jsd OPSD. Where the paper's
    text was not available, the values are ours: baseline, scale and max_ratio.

    Args:
        teacher: who teaches, and what it has read.
        divergence: forward_ce (the paper) | reverse_kl | jsd, from the teacher's distribution to
            the policy's.
        credit: sequence (the paper) | local: sequence = a token also answers for the divergence at
            the later tokens of its completion.
        baseline: group | none: what is subtracted from the later divergence; group = the mean of
            the siblings at the same position, for one more pass without gradients.
        scale: none | remaining: remaining = the mean of the later divergences instead of their sum.
        max_ratio: upper bound of the constant importance ratio that multiplies a token's loss, >=
            1; it is 1 in a rollout's first update (SDPO: 2).
    """

    teacher: Teacher = field(default_factory=Teacher)
    divergence: str = "forward_ce"
    credit: str = "sequence"
    baseline: str = "group"
    scale: str = "none"
    max_ratio: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(choices)}"
                )
        if not 1 <= self.max_ratio < math.inf:
            raise ValueError(f"max_ratio={self.max_ratio} must be a number that is >= 1")

    @property
    def needs_candidates(self) -> bool:
        return self.credit == "sequence" and self.baseline == "group"

    def teacher_divergence(self, batch: LossInputs) -> Tensor:
        """Return the ``[B, T]`` divergence at each position, nats, with the student's graph."""
        assert batch.teacher is not None
        assert batch.candidates is not None
        known = torch.cat([batch.teacher.logprobs, batch.teacher.tail.unsqueeze(-1)], -1)
        return divergence(batch.candidates, known, self.divergence)

    def future(self, batch: LossInputs) -> Tensor:
        """Return the ``[B, T]`` divergence at the later tokens, without a graph."""
        cost = torch.where(batch.mask, self.teacher_divergence(batch).detach(), 0.0)
        if self.scale == "none":
            return strict_future(cost)
        return strict_future(cost) / strict_future(batch.mask.to(cost)).clamp(min=1)

    def future_baseline(self, update: LossInputs, group_size: int) -> Tensor:
        """Return the ``[b, T]`` mean later divergence of each completion's siblings.

        Siblings without feedback, and those that ended before the position, do not count.

        Args:
            update: one optimiser step's inputs, with the present policy's candidates.
            group_size: G.
        """
        return mean_of_others(self.future(update), update.mask, group_size)

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        loss = self.teacher_divergence(batch)
        if self.credit == "sequence":
            credit = self.future(batch)
            if batch.future_baseline is not None:
                credit = credit - batch.future_baseline
            # The value is 0, and the gradient that of the log-prob.
            loss = loss + (batch.logprobs - batch.logprobs.detach()) * credit
        ratio = importance_ratio(batch.logprobs.detach(), batch.old_logprobs)
        return loss * ratio.clamp(max=self.max_ratio)
