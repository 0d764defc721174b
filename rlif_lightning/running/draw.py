"""What makes the rollout of a training step: an engine, with further draws, or given texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlif_lightning.data.curriculum import Curriculum
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.dynamic_sampling import DynamicDraws
from rlif_lightning.learning.scored_rollouts import RolloutSource, ScoredRollout
from rlif_lightning.records import Prompts
from rlif_lightning.running.texts import drawn_from_texts


def draw(module: Any, prompts: Prompts, rollout_number: int) -> ScoredRollout:
    """Draw and score the rollout of a batch (a collective); a curriculum sees what it says.

    Args:
        module: the ``RLIFModule``.
        prompts: the batch.
        rollout_number: of the rollout.
    """
    data = getattr(module.trainer, "datamodule", None)
    if module.objective.column is not None:
        drawn = drawn_from_texts(module, prompts)
    else:
        drawn = _sampled(module, data, prompts, rollout_number)
    if isinstance(data, PromptData) and isinstance(data.source, Curriculum):
        data.source.observe(*drawn.every_group)
    return replace(drawn, draws=())  # nothing needs their memory during the update


def _sampled(module: Any, data: Any, prompts: Prompts, rollout_number: int) -> ScoredRollout:
    source = RolloutSource(module.engine, module.rewards, module.sampling, module.group_size)
    if module.dynamic_sampling is not None:
        problems = data.split("train") if isinstance(data, PromptData) else None
        source = DynamicDraws(module.dynamic_sampling, source, problems, module.seed)
    return source.draw(prompts, rollout_number)
