"""An objective of your own: CISPO, which clips the ratio instead of the token's gradient.

The clipped surrogate gives no gradient to a token whose ratio has left the clip range. CISPO
(https://arxiv.org/abs/2506.13585) keeps every token: the clipped ratio is a constant weight of
``-A log p``. Name it by its class path, from the root of this repository:

    python -m rlif_lightning fit --config configs/quickstart.yaml \\
        --model.objective=examples.my_objective.CISPO --model.objective.clip_high=0.3

or in YAML:

    model:
      objective: {class_path: examples.my_objective.CISPO, init_args: {clip_high: 0.3}}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning import LossInputs, Objective


@dataclass(frozen=True)
class CISPO(Objective):
    """The loss ``-clip(rho, 1 - clip_low, 1 + clip_high) A logprob``, the clipped ratio constant.

    With ``rho = exp(logprob - old_logprob)``. At ``rho = 1`` its gradient is that of the clipped
    surrogate.

    Raises:
        ValueError: ``dual_clip`` is given, which would do nothing here.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None:
            raise ValueError(
                f"dual_clip={self.dual_clip} does nothing in CISPO, whose weights are bounded by"
                " clip_high; leave it null"
            )

    def select(self, update: LossInputs) -> Tensor:
        """``[B, T]`` marks: none, since all tokens are treated alike."""
        return torch.zeros_like(update.mask)

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """``[B, T]`` losses; the mask and the mean over tokens come later."""
        ratio = (batch.logprobs - batch.old_logprobs).exp()  # [B, T]
        weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high).detach()  # no gradient
        return -weight * batch.advantages * batch.logprobs
