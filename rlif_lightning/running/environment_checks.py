"""What is refused beside an environment, because it would misread an episode."""

from __future__ import annotations

from typing import Any

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.rewards.held_head import heads_in


def check_environment(module: Any, data: PromptData) -> None:
    """Refuse what reads a completion as one text, an engine of single turns, and a wrong template.

    One instance of the environment is made.

    Args:
        module: the ``RLIFModule``.
        data: the run's data after its ``setup``, with an environment.

    Raises:
        ValueError: names the setting and the remedy.
    """
    settings = data.environment
    assert settings is not None
    for sampling in (module.sampling, module.evaluator.evaluation.sampling or module.sampling):
        tools = module.engine.check_environment(settings, sampling)
        for split in (data.split("train"), data.split("validation")):
            if split is not None and split.environment is not None:
                split.environment.check(tools)
    _check_settings(module, settings)


def _check_settings(module: Any, settings: EnvironmentSettings) -> None:
    said = f"data.environment.make={settings.make!r}"
    if module.answer_tokens is not None:
        raise ValueError(
            f"model.answer_tokens locates an answer in one text, and {said} makes completions of"
            " several turns; set model.answer_tokens=null"
        )
    if module.objective.teacher is not None:
        raise ValueError(
            f"model.objective={type(module.objective).__name__} shows a teacher the problem without"
            f" the first observation of {said}; use another objective, or data.environment=null"
        )
    if settings.thoughts == "fork" and module.replay_buffer is not None:
        raise ValueError(
            "data.environment.thoughts='fork' makes completions of several contexts, which"
            " model.replay does not keep; set model.replay=null, or thoughts=keep"
        )
    _check_heads(module, said)


def _check_heads(module: Any, said: str) -> None:
    for name, reward in module.rewards.settings.items():
        for head in heads_in(reward.head):
            if head.reads_one_text:
                raise ValueError(
                    f"rewards.{name}: {type(head).__name__} reads a completion as one text, and"
                    f" {said} makes completions of several turns; use another reward, such as"
                    " EnvironmentReward or RubricJudgeHead, or data.environment=null"
                )
