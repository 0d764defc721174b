"""An environment of your own: it says whether a sum is right, and lets the policy try again.

Name it by its class path, from the root of this repository:

    python -m rlif_lightning fit --config configs/quickstart.yaml \\
        --data.environment.make examples.my_environment.TryAgain \\
        --data.environment.max_turns 2 --data.environment.template '{observation}*' \\
        --model.rewards '{right: {head: EnvironmentReward}}'
"""

from __future__ import annotations

from typing import Any

from rlif_lightning.environments.base import Step


class TryAgain:
    """Pays 1 for a right sum in the first turn, and less in every further one.

    Args:
        less: what a turn more costs.
    """

    def __init__(self, less: float = 0.5):
        self.less = less

    def reset(self, seed: int | None = None, **row: Any) -> None:
        """Begin with a problem of the data set; the prompt shows it already."""
        self.answer, self.pays = row["answer"], 1.0

    def step(self, action: str) -> Step:
        """Compare what the policy wrote with the answer."""
        is_right = action.rpartition("####")[2] == self.answer
        pays, self.pays = self.pays, self.pays - self.less
        return Step("=", reward=pays if is_right else 0.0, done=is_right)
