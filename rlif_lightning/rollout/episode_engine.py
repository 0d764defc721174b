"""``EpisodeEngine``: what engines that play episodes share, however they draw a turn."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.environments.pool import EnvironmentPool
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.episodes import EpisodeDriver, open_pool, tools_of
from rlif_lightning.rollout.turn_taking import Turns
from rlif_lightning.sampling import Sampling


class EpisodeEngine(RolloutEngine):
    """An engine that plays episodes and keeps their environments from rollout to rollout.

    Subclasses draw. ``Turns`` decides whose turn it is, what is observed and what ends.

    Attributes:
        pool: of environments; None before the first rollout that needs one.
        pool_settings: that the pool was opened with.
    """

    pool: EnvironmentPool | None = None
    pool_settings: EnvironmentSettings | None = None

    def check_environment(
        self, settings: EnvironmentSettings, sampling: Sampling
    ) -> list[dict[str, Any]]:
        if sampling.min_new_tokens:
            raise ValueError(
                f"sampling.min_new_tokens={sampling.min_new_tokens} is for single turns: under"
                " data.environment set it to 0"
            )
        if self.pool is None or self.pool_settings != settings:
            self.discard_ahead()
            self.pool, self.pool_settings = open_pool(settings), settings
            weakref.finalize(self, self.pool.close)
        return tools_of(self.pool)

    def discard_ahead(self) -> None:
        """Close the environments."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()

    def episodes(self, prompts: Prompts, sampling: Sampling) -> EpisodeDriver | None:
        """Return what runs the environments of a rollout; None for single turns."""
        task = prompts.environment
        if task is None:
            return None
        self.check_environment(task.settings, sampling)
        assert self.pool is not None
        return EpisodeDriver(self.pool, task)

    def with_turns(self, rollout: Rollout, turns: Turns) -> Rollout:
        """Return a rollout of episodes (a collective: too many failures stop every process)."""
        turn_ids = turns.turn_ids[:, : rollout.mask.shape[1]].to(rollout.mask.device)
        episodes = [turns.driver.episodes[row] for row in range(len(turn_ids))]
        turns.driver.pool.check_failures(episodes)
        texts = ["\n".join(each) for each in turns.texts]
        known = {"texts": texts, "turn_ids": turn_ids, "episodes": episodes}
        if turns.settings.thoughts == "fork":
            starts = turns.context_starts[:, : rollout.mask.shape[1]]
            known["context_starts"] = starts.to(turn_ids.device)
        return replace(rollout, mask=turn_ids >= 0, **known)
