"""Problems that the policy cannot read: refused once it is loaded, before anything is sampled."""

from __future__ import annotations

from typing import Any

import torch

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.judges.base import RunModels
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rewards.held_head import heads_in
from rlif_lightning.sampling import Sampling


def check_contexts(module: Any, models: RunModels) -> None:
    """Refuse problems of the loaded splits that the policy, or a head's model, cannot read.

    Raises:
        ValueError: names the row, the limit and the remedy.
    """
    data = getattr(module._trainer, "datamodule", None)
    if not isinstance(data, PromptData):
        return
    if (validation := data.split("validation")) is not None:
        _check_prompts(module, validation, "validation", module.evaluator.evaluation.sampling)
    if (train := data.split("train")) is not None:
        check_problems(module, train, models)


def check_problems(module: Any, problems: EncodedSplit, models: RunModels) -> None:
    """Refuse training problems that the policy, or a head's model, cannot read.

    Raises:
        ValueError: as :func:`check_contexts`.
    """
    if module.objective.column is None:  # otherwise nothing is sampled for them
        _check_prompts(module, problems, "train", None)
    for reward in module.rewards.settings.values():
        for head in heads_in(reward.head):
            seen = problems if head.needs_gold else problems.only(head.columns)
            head.check_contexts(seen, models)


def _check_prompts(
    module: Any, problems: EncodedSplit, name: str, sampling: Sampling | None
) -> None:
    policy: PolicyModel = module.policy
    if module.engine.memory != "native" or problems.token_ids is None:
        return  # another engine ends a completion where its own limit is
    new, task = (sampling or module.sampling).max_new_tokens, problems.environment
    room = 0 if task is None else task.settings.max_observation_tokens
    for row, ids in zip(problems.rows.tolist(), problems.token_ids, strict=True):
        try:
            policy.check_context([torch.from_numpy(ids)], new, room)
        except ValueError as error:
            raise ValueError(f"row {row} of the {name} split: {error}") from error
