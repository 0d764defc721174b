"""An objective of your own: learn less from what was right than from what was wrong.

W-REINFORCE (https://arxiv.org/abs/2506.01347) multiplies the loss of tokens with a positive
advantage by a small weight, 0.1 in the paper. Wrong completions are then pushed down more than
right ones are pulled up, which keeps the policy diverse. The paper has no clip; here the loss that
is weighted is the clipped surrogate. Name it by its class path, from the root of this repository:

    python -m rlif_lightning fit --config configs/quickstart.yaml \\
        --model.objective=examples.my_objective.WReinforce --model.objective.positive_weight=0.3

or in YAML:

    model:
      objective:
        class_path: examples.my_objective.WReinforce
        init_args: {positive_weight: 0.3}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning import ClippedObjective, LossInputs


@dataclass(frozen=True)
class WReinforce(ClippedObjective):
    """The clipped surrogate, with another weight where the advantage is positive.

    Args:
        positive_weight: of these tokens, >= 0; 1 is ``Clipped``.

    Raises:
        ValueError: the weight is negative.
    """

    positive_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positive_weight < 0:
            raise ValueError(f"positive_weight={self.positive_weight} must not be negative")

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return ``[B, T]`` losses; the mask and the mean over tokens come later."""
        weight = torch.where(batch.advantages > 0, self.positive_weight, 1.0)  # [B, T]
        return weight * self.clipped(batch)
