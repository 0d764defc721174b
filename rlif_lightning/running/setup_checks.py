"""What is refused before anything is sampled: settings and data that need no model to be found wrong."""

from __future__ import annotations

from typing import Any

from rlif_lightning.data.prompts import PromptData


def check_run(module: Any, data: PromptData | None, stage: str) -> None:
    """Refuse what could only fail, or silently do nothing, after hours of sampling.

    Args:
        module: the ``RLIFModule``. Where its ``fits_next`` is set, what ``fit`` refuses is refused in every stage.
        data: the run's data after its ``setup``, if it is ours.
        stage: fit | validate | test | predict.

    Raises:
        ValueError: names the setting, column or row, and the remedy.
    """
    module.engine.check(module.sampling)
    validation = None if data is None or stage == "predict" else data.split("validation")
    if validation is not None:
        module.engine.check(module.evaluator.evaluation.sampling or module.sampling)
        if module.answer_column is not None:
            module.evaluator.check_problems(validation, module.answer_column)
    if stage == "fit" or module.fits_next:
        _check_training(module, data)


def _check_training(module: Any, data: PromptData | None) -> None:
    module.sampling.check_trainable()
    module.objective.check(module.plan.num_updates)
    module.advantage.check(module.group_size)
    module.optimizer_plan.check(module.trainer.max_steps)
    _check_trainer(module.trainer)
    train = None if data is None else data.split("train")
    if data is not None and train is not None:
        module.plan.check(data.prompts_per_step)
        module.rewards.check(train, module.group_size)


def _check_trainer(trainer: Any) -> None:
    """What Lightning's trainer offers and a run of several updates per batch cannot use."""
    if trainer.precision == "16-mixed":
        raise ValueError("trainer.precision=16-mixed is not supported (its loss scaling); use bf16-mixed")
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} is not used; set model.max_grad_norm instead"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} is not used: an update is cut up by"
            " model.micro_batch_tokens; raise data.prompts_per_step for larger ones"
        )
