"""The interface of rollout engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from rlif_lightning.data.described import Described
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.sampling import Sampling


class RolloutEngine(Described, ABC):
    """An engine that draws G completions for each prompt.

    ``setup`` is called once, then ``generate`` once per rollout.

    Attributes:
        scoring_tokens: token budget of one forward pass over completions; a module gives an engine
            its ``update.micro_batch_tokens``.
        memory: native | vllm | apart: what it takes of this process's memory, for preflight: keys
            and values as of `NativeEngine`, also weights as vLLM does, or nothing.
    """

    scoring_tokens: int = 8192
    memory: ClassVar[str] = "apart"

    @abstractmethod
    def setup(self, policy: PolicyModel, seed: int) -> None:
        """Bind the policy that is sampled from, and the seed of the sampling counters."""

    def check(self, sampling: Sampling) -> None:
        """Refuse sampling settings that the engine does not have, before anything is sampled.

        Raises:
            ValueError: names the settings and the remedy.
        """

    def check_environment(
        self, settings: EnvironmentSettings, sampling: Sampling
    ) -> list[dict[str, Any]]:
        """Refuse an environment that the engine cannot play in, before anything is sampled.

        Returns:
            JSON schemas of the environment's tools.

        Raises:
            ValueError: names the setting and the remedy.
        """
        raise ValueError(
            f"model.engine={type(self).__name__} draws single turns, and data.environment.make="
            f"{settings.make!r} answers turns: set model.engine=NativeEngine, or"
            " data.environment=null"
        )

    def look_ahead(self, upcoming: Callable[[int], Prompts | None], rollout_number: int) -> None:
        """Take a source of coming prompts, for an engine that draws ahead; others need none.

        Args:
            upcoming: returns the prompts of a coming rollout; None where there will be no such
                rollout.
            rollout_number: of the first rollout that this training will make.
        """

    def discard_ahead(self) -> None:
        """Drop what was drawn ahead, because the policy was replaced or training has ended.

        It is no collective.
        """

    @abstractmethod
    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        """Draw completions.

        Args:
            prompts: P prompts.
            group_size: G completions for each.
            sampling: how to draw.
            rollout_number: a counter of the sampling (not the optimizer step).

        Returns:
            The rollout, with token statistics of the logits that were sampled from.
        """
