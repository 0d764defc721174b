"""``Supervised``: a stage that is trained on a column of texts, before one with rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import WithoutAdvantages


@dataclass(frozen=True)
class Supervised(WithoutAdvantages):
    """The cross-entropy of a column's texts given their prompts, in place of a policy loss.

    Nothing is sampled in training, and no reward is needed: a group's one completion is the
    problem's text, with an end of sequence. ``token_mean`` is torch's ``cross_entropy`` over the
    texts' tokens of an optimiser step.

    Args:
        column: of the texts, or a dotted path. They are cut at ``sampling.max_new_tokens``.
    """

    needs_rewards: ClassVar[bool] = False

    column: str = "answer"

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return -batch.logprobs
