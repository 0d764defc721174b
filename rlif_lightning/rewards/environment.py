"""``EnvironmentReward``: what an environment paid for an episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.environments.base import Episode
from rlif_lightning.processes.collectives import all_rank_objects
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.step_scores import StepScores


class EnvironmentReward(RewardHead):
    """Gives the sum of an episode's rewards; none (NaN) for an episode that failed.

    Logs ``environment/solved``, and the mean of every figure of the environment's ``metrics`` as
    ``environment/<figure>``.

    Args:
        per_turn: also score every turn by what the environment pays from it on. ``StepDelta`` reads
            these scores: ``StepDelta(baseline="group")`` subtracts the mean of the group.
    """

    def __init__(self, per_turn: bool = False):
        super().__init__()
        self.per_turn = self.gives_steps = per_turn

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems without an environment.

        Raises:
            ValueError: names the head and the setting.
        """
        if problems.environment is None:
            raise ValueError(
                f"{type(self).__name__} scores episodes, and data.environment is null: set"
                " data.environment.make, or take the head out"
            )

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all episodes (a collective)."""
        episodes = episodes_of(rollout)
        scores = torch.tensor([episode.reward for episode in episodes], dtype=torch.float32)
        scores = scores.to(rollout.mask.device)
        steps = self._steps(rollout, episodes) if self.per_turn else None
        return RewardOutput(scores, log=figures(episodes), steps=steps)

    def _steps(self, rollout: Rollout, episodes: Sequence[Episode]) -> StepScores:
        ends, scores = [], []
        assert rollout.turn_ids is not None
        for row, episode in zip(rollout.turn_ids, episodes, strict=True):
            ends.append(turn_ends(row))
            scores.append([] if episode.failure else rewards_to_go(episode))
        return StepScores.of(ends, scores, rollout.mask.device)


def episodes_of(rollout: Rollout) -> Sequence[Episode]:
    """Return a rollout's episodes.

    Raises:
        ValueError: it has none.
    """
    if rollout.episodes is None:
        raise ValueError(
            "these completions are of one turn: this head scores episodes; set data.environment, or"
            " take the head out"
        )
    return rollout.episodes


def turn_ends(turn_ids: Tensor) -> list[int]:
    """Return the position of each turn's last token, from ``[T]`` turns of a completion's tokens.

    Example:
        >>> turn_ends(torch.tensor([0, 0, -1, 1, -1, 2, 2, -1]))
        [1, 3, 6]
    """
    places = {turn: place for place, turn in enumerate(turn_ids.tolist()) if turn >= 0}
    return [places[turn] for turn in sorted(places)]


def rewards_to_go(episode: Episode) -> list[float]:
    """Return what the environment pays from each turn on.

    Example:
        >>> from rlif_lightning.environments.base import Turn
        >>> rewards_to_go(Episode((Turn("a", 1.0), Turn("b", 2.0)), "completed", 8, 4.0))
        [7.0, 6.0]
    """
    left, found = episode.final_reward, []
    for turn in reversed(episode.turns):
        left += turn.reward
        found.append(left)
    return found[::-1]


def figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return means over the episodes of all data ranks that did not fail (a collective)."""
    sums, counts = Counter[str](), Counter[str]()
    for episode in episodes:
        if not episode.failure:
            each = {**episode.metrics, "solved": float(episode.is_solved)}
            sums.update(each)
            counts.update(dict.fromkeys(each, 1))
    total, number = Counter[str](), Counter[str]()
    for rank_sums, rank_counts in all_rank_objects((sums, counts)):
        total.update(rank_sums)
        number.update(rank_counts)
    means = {f"environment/{name}": total[name] / number[name] for name in sorted(number)}
    return {"environment/solved": torch.nan, **means}
