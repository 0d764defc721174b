"""STARE: weights on the most surprising tokens, which decide whether entropy rises or falls.

A step along one token's policy gradient changes the entropy of its position by ``-A Phi(p)``
(docs/related/stare.md). Phi is negative on surprising tokens. So with A > 0 these raise the
entropy, and with A < 0 they lower it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.marks import all_rank_largest, largest
from rlif_lightning.learning.objectives import PickingObjective

SCOPES = ("update", "micro")
WEIGHTS = ("positive_weight", "negative_weight")


@dataclass(frozen=True)
class STARE(PickingObjective):
    """The clipped surrogate, with weights on the tokens of highest surprisal.

    https://arxiv.org/abs/2606.19236. The surprisal of a token is its negative log-prob. The
    entropy gate is the callback ``STAREController``; without it the weights always apply. Clip
    bounds, fraction and ``positive_weight`` are the paper's.

    Args:
        clip_high: as in ClippedObjective.
        dual_clip: as in ClippedObjective.
        fraction: share of the tokens with A > 0, and of those with A < 0, that get a weight, in
            [0, 1); rounded up; 0 = off.
        positive_weight: W, of the surrogate where A > 0; 1 = off.
        negative_weight: M, of the surrogate where A < 0; 1 = off, the paper's variant O1. 0.9 is
            its variant C2.
        scope: update | micro: the tokens that are ranked together. `update`: all of an optimiser
            step, by their old log-probs. `micro`: those of a micro-batch, by the present ones, as
            the released code does; results then depend on micro_batch_tokens.
    """

    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    fraction: float = 0.1
    positive_weight: float = 1.1
    negative_weight: float = 1.0
    scope: str = "update"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number that is >= 0")
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is unknown; use one of {', '.join(SCOPES)}")

    @property
    def weighs(self) -> bool:
        """Whether any token can have a weight other than 1."""
        return self.fraction > 0 and not self.positive_weight == self.negative_weight == 1

    def select(self, update: LossInputs) -> Tensor:
        if not self.weighs or self.scope == "micro":
            return torch.zeros_like(update.mask)

        def top(values: Tensor, candidates: Tensor) -> Tensor:
            return all_rank_largest(values, candidates, self.fraction, update.completion_numbers)

        return self._signs(update, -update.old_logprobs, top)

    def micro_batch_marks(self, batch: LossInputs, marks: Tensor) -> Tensor:
        if not self.weighs or self.scope == "update":
            return marks
        surprisal = -batch.logprobs.detach()
        return self._signs(batch, surprisal, lambda values, c: largest(values, c, self.fraction))

    def _signs(
        self, batch: LossInputs, surprisal: Tensor, top: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return ``[B, T]`` float marks: the sign of the advantage on the tokens with a weight."""
        signs = torch.zeros_like(surprisal)
        for sign, weight in ((1.0, self.positive_weight), (-1.0, self.negative_weight)):
            if weight != 1:
                candidates = batch.mask & (batch.advantages * sign > 0)
                signs = signs.masked_fill(top(surprisal, candidates), sign)
        return signs

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        loss = self.clipped(batch)
        if not self.weighs:
            return loss
        weight = torch.where(marks < 0, self.negative_weight, torch.ones_like(loss))
        return torch.where(marks > 0, self.positive_weight, weight) * loss
