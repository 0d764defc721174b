"""A stage on a column of texts: what takes the place of sampling, and its checks."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.columns import check_column, column_values
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.rollout_advantages import mean_of_tokens
from rlif_lightning.learning.scored_rollouts import ScoredRollout
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.given_texts import text_rollout

SETTING = "model.objective"


def drawn_from_texts(module: Any, prompts: Prompts) -> ScoredRollout:
    """Return the rollout of a batch's texts, scored by the rewards if there are any (a collective).

    Logs ``supervised/loss``, the cross-entropy before the update.
    """
    started = time.perf_counter()
    texts = [str(value) for value in prompts.column(module.objective.column)]
    make = partial(text_rollout, module.policy, prompts, texts, module.sampling)
    rollout = module.budget.run(make)
    seconds, num_tokens = time.perf_counter() - started, rollout.lengths.sum()
    loss: dict[str, Any] = {"supervised/loss": -mean_of_tokens(rollout.stats.logprobs, rollout)}
    return ScoredRollout(rollout, module.rewards(rollout), num_tokens, seconds, loss)


def refuse_without_rewards(objective: Objective) -> None:
    """Refuse to examine the rewards of a stage that needs none.

    Raises:
        ValueError: names the objective.
    """
    if not objective.needs_rewards:
        raise ValueError(
            f"{SETTING}={type(objective).__name__} needs no rewards, and preflight judges rewards;"
            " examine the stage that has some"
        )


def check_texts(module: Any, data: PromptData | None) -> None:
    """Refuse what a stage on texts cannot use, and problems without a text.

    Raises:
        ValueError: names the setting, or the row, and the remedy.
    """
    if module.objective.column is None:
        return
    _check_settings(module, data)
    split = None if data is None else data.split("train")
    if data is not None and split is not None:
        _check_column(module.objective.column, data, split)


def _check_settings(module: Any, data: PromptData | None) -> None:
    named, sampling = f"{SETTING}={type(module.objective).__name__}", module.sampling
    if module.group_size != 1:
        raise ValueError(
            f"data.group_size={module.group_size}: {named} has one text for each problem; set"
            " data.group_size=1"
        )
    if sampling.temperature != 1 or sampling.min_new_tokens:
        raise ValueError(
            f"model.sampling.temperature={sampling.temperature}, min_new_tokens="
            f"{sampling.min_new_tokens}: {named} trains the model's own distribution; set"
            " temperature=1 and min_new_tokens=0 (evaluation.sampling has its own)"
        )
    environment = None if data is None else data.environment
    unused = {
        "data.environment.make": environment and repr(environment.make),
        "model.dynamic_sampling": module.dynamic_sampling,
        "model.engine.staleness": getattr(module.engine, "staleness", 0),
    }
    for setting, value in unused.items():
        if value:
            raise ValueError(f"{setting}={value}: {named} samples nothing; leave it out")


def _check_column(column: str, data: PromptData, split: EncodedSplit) -> None:
    setting = f"{SETTING}.column={column!r}"
    check_column(setting, column, split.dataset, "the train split")
    data.format.refuse_to_show(data.prompt_column, column)
    for row, value in column_values(split.dataset, column, split.rows.tolist()):
        if isinstance(value, (dict, list)) or value is None or not str(value):
            raise ValueError(
                f"{setting}: row {row} of the train split has no text but {value!r:.100}; leave"
                " the row out, or name a column of texts"
            )
    rank_zero_info(f"the policy is trained on the column {column!r}: this is not label-free")
