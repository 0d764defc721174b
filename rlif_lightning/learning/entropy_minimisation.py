"""``EntropyMinimisation``: a policy's own entropy as the loss, without a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import WithoutAdvantages


@dataclass(frozen=True)
class EntropyMinimisation(WithoutAdvantages):
    """The entropy (nats) of the next-token distributions of sampled completions, minimised.

    EM-FT (https://arxiv.org/abs/2505.15134) and one-shot entropy minimisation
    (https://arxiv.org/abs/2505.20282), which sample and take the entropy at temperature 0.5:
    ``sampling.temperature`` serves both here. No reward is needed, and none has an effect. What was
    sampled has no gradient of its own.
    """

    needs_rewards: ClassVar[bool] = False

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        assert batch.entropy is not None
        return batch.entropy
