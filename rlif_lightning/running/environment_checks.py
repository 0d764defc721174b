"""What is refused beside an environment, because it would misread an episode."""

from __future__ import annotations

from typing import Any

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.held_head import heads_in
from rlif_lightning.rewards.judged_steps import StepRubricJudgeHead
from rlif_lightning.rewards.likelihood import TargetLogprob

MISREADS = {  # heads that take what an episode's turns are for one text
    StepRubricJudgeHead: "splits one text into steps, and {said} has steps of its own; use"
    " RubricJudgeHead, or a reward of the environment",
    TargetLogprob: "reads a reply behind one text, and {said} makes completions of several turns;"
    " use another reward, or data.environment=null",
}


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
    said = f"data.environment.make={settings.make!r}"
    for name, reward in module.rewards.settings.items():
        for head in heads_in(reward.head):
            _check_head(name, head, said)


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


def _check_head(name: str, head: RewardHead, said: str) -> None:
    for kind, why in MISREADS.items():
        if isinstance(head, kind):
            raise ValueError(f"rewards.{name}: {kind.__name__} {why.format(said=said)}")
