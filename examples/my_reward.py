"""A reward head of your own: how many of a completion's own equations are true. It needs no label.

Name it by its class path, from the root of this repository:

    python -m rlif_lightning fit --config configs/quickstart.yaml \\
        --model.rewards '{vote: {head: ClusterVote}, steps: {head: examples.my_reward.TrueSteps}}'

or in YAML:

    model:
      rewards:
        vote: {head: ClusterVote, weight: 0.5}
        steps:
          head: {class_path: examples.my_reward.TrueSteps, init_args: {wrong: 0.0}}
          weight: 0.5
"""

from __future__ import annotations

import re

import torch

from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead

EQUATION = re.compile(r"(\d+)\+(\d+)=(\d+)")


class TrueSteps(RewardHead):
    """Scores a completion by its equations ``a+b=c``: mean of 1 if true, else ``wrong``.

    A completion without an equation is NaN (does not apply).

    Args:
        wrong: score of a false equation, below 1.

    Raises:
        ValueError: ``wrong`` is not below 1.
    """

    def __init__(self, wrong: float = 0.0):
        super().__init__()
        if wrong >= 1:
            raise ValueError(f"wrong={wrong} must be below 1, the score of a true equation")
        self.wrong = wrong

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Return ``[B]`` scores; log the share of completions with an equation."""
        scores = torch.tensor(
            [self.score(text) for text in rollout.texts], device=rollout.mask.device
        )
        return RewardOutput(scores, log={"steps/shown": float((~scores.isnan()).float().mean())})

    def score(self, text: str) -> float:
        """Return one completion's score."""
        verdicts = [int(a) + int(b) == int(c) for a, b, c in EQUATION.findall(text)]
        return (
            sum(1.0 if true else self.wrong for true in verdicts) / len(verdicts)
            if verdicts
            else float("nan")
        )
