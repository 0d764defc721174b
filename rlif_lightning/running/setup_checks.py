"""What is refused before anything is sampled: settings and data that are wrong without a model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.curriculum import Curriculum
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.data.streams import Streamed
from rlif_lightning.learning.divided_steps import differs_by_parts, fault_on_shards
from rlif_lightning.learning.optimizer import OptimizerFactory, check_optimizer
from rlif_lightning.running.environment_checks import check_environment
from rlif_lightning.running.planned import planned_rollouts, rollouts_of_epoch
from rlif_lightning.running.reward_checks import check_group_weights, check_scores, check_steps
from rlif_lightning.running.stock_callbacks import check_callbacks
from rlif_lightning.running.strategies import (
    DividedStrategy,
    ShardedStrategy,
    TensorParallelStrategy,
)
from rlif_lightning.running.teachers import check_teacher
from rlif_lightning.running.texts import check_texts

PRECISIONS = ("32-true", "bf16-mixed")
ALIASES = {
    "None": "32-true",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
}  # Lightning's
DTYPES = {"16-true": "float16", "bf16-true": "bfloat16", "64-true": "float64"}


def check_precision(precision: Any) -> None:
    """Refuse precisions that Lightning knows and a run cannot use.

    Args:
        precision: as it was said, before Lightning makes another of it: its ``16-mixed`` is
            ``bf16-mixed`` on a CPU.

    Raises:
        ValueError: names it and what to set instead.
    """
    name = ALIASES.get(str(precision), str(precision))
    if name in PRECISIONS:
        return
    said = f"trainer.precision={precision} is not supported"
    if name in DTYPES:
        raise ValueError(
            f"{said}: what the weights are stored in is the policy's setting; set"
            f" model.policy.dtype={DTYPES[name]} and"
            " leave trainer.precision at 32-true"
        )
    if name == "16-mixed":
        raise ValueError(
            f"{said} (its loss scaling; on a CPU Lightning would silently make bf16-mixed of it);"
            " use bf16-mixed"
        )
    raise ValueError(f"{said}; use one of {', '.join(PRECISIONS)}")


def check_precision_plugin(plugin: Any) -> None:
    """Check what Lightning made of a precision or was given as ``trainer.plugins``.

    Raises:
        ValueError: names it and what to set instead.
    """
    check_precision(plugin.precision)
    if type(plugin) not in (Precision, MixedPrecision):
        raise ValueError(
            f"trainer.plugins={type(plugin).__name__} is not supported; use trainer.precision, one"
            " of"
            f" {', '.join(PRECISIONS)}"
        )


def check_run(module: Any, data: PromptData | None, stage: str) -> None:
    """Refuse what could only fail, or silently do nothing, after hours of sampling.

    Args:
        module: the ``RLIFModule``. Where its ``fits_next`` is set, what ``fit`` refuses is refused
            in every stage.
        data: the run's data after its ``setup``, if it is ours.
        stage: fit | validate | test | predict.

    Raises:
        ValueError: names the setting, column or row, and the remedy.
    """
    check_precision_plugin(module.trainer.precision_plugin)
    module.evaluator.has_episodes = data is not None and data.environment is not None
    if data is not None and module.evaluator.has_episodes:
        check_environment(module, data)
    module.engine.check(module.sampling)
    validation = None if data is None or stage == "predict" else data.split("validation")
    if validation is not None:
        module.engine.check(module.evaluator.evaluation.sampling or module.sampling)
        if module.answer_column is not None:
            module.evaluator.check_problems(validation, module.answer_column)
    if stage == "fit" or module.fits_next:
        _check_training(module, data)


def tell_seed(of_module: int, of_data: int | None) -> None:
    """Tell of a seed that ``lightning.seed_everything`` was given, and the run was not.

    Args:
        of_module: the module's seed.
        of_data: that of our data.
    """
    everything = os.environ.get("PL_GLOBAL_SEED", "0")
    if everything not in ("", "0") and of_module == 0 and of_data in (0, None):
        rank_zero_info(
            f"seed_everything({everything}) reaches neither sampling nor the order of problems,"
            f" whose seed is 0: in Python pass RLIFModule(seed={everything}) and"
            f" PromptData(seed={everything}), in YAML seed_everything: {everything}"
        )


def _check_training(module: Any, data: PromptData | None) -> None:
    tell_seed(module.seed, None if data is None else data.seed)
    module.sampling.check_trainable()
    _check_objective(module, data)
    is_divided = isinstance(module.trainer.strategy, DividedStrategy)
    check_optimizer(module.make_optimizer, module.schedule, module.trainer.max_steps, is_divided)
    _check_divided_steps(module.make_optimizer, module.trainer.strategy)
    check_trainer(vars(module.trainer))
    check_callbacks(module.trainer.callbacks, is_divided)
    if module.dynamic_sampling is not None:
        module.dynamic_sampling.check(module.rewards, module.group_size, data)
        _check_stream(module.dynamic_sampling.max_draws, data)
    _check_look_ahead(module)
    check_teacher(module, data)
    if module.replay_buffer is not None:
        prompts = None if data is None else data.prompts_per_rollout
        module.replay_buffer.settings.check(module.objective, prompts)
    if data is not None and isinstance(data.source, Curriculum):
        _check_curriculum(data.source, module)
    most = _most_visits(module, data)
    for reward in module.rewards.settings.values():
        reward.head.check_visits(most)
    train = None if data is None else data.split("train")
    if data is not None and train is not None:
        module.plan.check(data.prompts_per_rollout)
        if not isinstance(data.source, Streamed):
            _check_interval(module.trainer, len(train) // data.prompts_per_rollout)
        module.rewards.check(train, module.group_size)
        tell_what_is_not_held_out(train, data.split("validation"))


def tell_what_is_not_held_out(train: EncodedSplit, validation: EncodedSplit | None) -> None:
    """Tell of validation problems that are trained on; prompts of environments say too little.

    Args:
        train: the training problems.
        validation: those that are measured; None = none are.
    """
    if validation is None or train.environment is not None:
        return
    trained = {hash(each.tobytes()) for each in train.token_ids or ()}
    seen = sum(hash(each.tobytes()) in trained for each in validation.token_ids or ())
    if seen:
        rank_zero_info(
            f"{seen} of {len(validation)} validation problems are training problems too: what is"
            " measured on these is not held out"
        )


def _check_interval(trainer: Any, batches: int) -> None:
    """Refuse an interval that no epoch reaches; Lightning does so after the first evaluation."""
    every, epoch = trainer.val_check_interval, rollouts_of_epoch(trainer, batches)
    counts = isinstance(every, int) and trainer.check_val_every_n_epoch is not None
    if counts and every > epoch and trainer.limit_val_batches:
        raise ValueError(
            f"trainer.val_check_interval={every} is more than the {epoch} rollouts of an epoch; set"
            " trainer.check_val_every_n_epoch=null to count over epochs, or lower it"
        )


def _check_divided_steps(make: OptimizerFactory, strategy: Any) -> None:
    """Refuse an optimiser that would step divided weights otherwise than whole ones, or not."""
    fault = None
    if isinstance(strategy, ShardedStrategy):
        fault = fault_on_shards(make, strategy.device_mesh["data_parallel"])
    if isinstance(strategy, TensorParallelStrategy) and differs_by_parts(make):
        fault = "it reads each matrix as a whole, and would step its part by the part's own figures"
    if fault is not None:
        raise ValueError(
            f"model.optimizer cannot step weights that trainer.strategy={type(strategy).__name__}"
            f" divides between processes ({fault}); use another optimiser, such as"
            " torch.optim.AdamW, or --config configs/strategy/ddp.yaml"
        )


def _check_objective(module: Any, data: PromptData | None) -> None:
    # Replayed tokens are of an older policy, as those of a later update are.
    module.objective.check(module.plan.num_updates + (module.replay_buffer is not None))
    if module.objective.uses_advantages:
        module.advantage.check(module.group_size)
    check_texts(module, data)
    if module.objective.needs_rewards:
        check_scores(module.rewards.settings)
        check_steps(module.advantage, module.rewards.settings)
        check_group_weights(module.advantage, module.rewards.settings)
    if module.answer_tokens is not None:
        module.answer_tokens.check(module.objective)


def _check_stream(max_draws: int, data: PromptData | None) -> None:
    if max_draws > 1 and data is not None and isinstance(data.source, Streamed):
        raise ValueError(
            f"model.dynamic_sampling.max_draws={max_draws} draws problems from any place, and a"
            " stream has a window in memory; set max_draws=1, or load the data whole"
        )


def _check_curriculum(source: Curriculum, module: Any) -> None:
    if source.reward not in module.rewards.names:
        raise ValueError(
            f"data.source.reward={source.reward!r} is none of the rewards"
            f" {', '.join(module.rewards.names)}; name one, which may have weight 0"
        )
    source.use_table(module.prompt_table)


def _most_visits(module: Any, data: PromptData | None) -> float:
    """Return how often the run visits a problem at most, but for further draws; inf = no limit."""
    trainer = module.trainer
    if trainer.fast_dev_run:
        return math.inf
    train = None if data is None else data.split("train")
    if data is None or train is None:
        return math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    whole = len(train) // data.prompts_per_rollout  # rollouts in which each problem has its visit
    planned = planned_rollouts(trainer, module, whole)
    return math.ceil(planned / whole) if whole and planned is not None else math.inf


def _check_look_ahead(module: Any) -> None:
    """Refuse draws ahead of prompts that nobody can name before their rollout."""
    staleness = getattr(module.engine, "staleness", 0)
    if staleness and not hasattr(module.trainer.datamodule, "upcoming"):
        raise ValueError(
            f"model.engine.staleness={staleness} draws the prompts of coming rollouts, which only a"
            " data module with a method `upcoming` knows, such as PromptData; use it, or set"
            " staleness=0"
        )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse what Lightning's trainer offers and a run of several updates per batch cannot use.

    Lightning itself refuses it later, with advice that does not fit here.

    Args:
        settings: of the trainer, by name; those at their defaults may be absent.

    Raises:
        ValueError: names the setting and ours.
    """
    for name in ("gradient_clip_val", "gradient_clip_algorithm"):
        if given := settings.get(name):
            raise ValueError(
                f"trainer.{name}={given} is not used; set model.update.max_grad_norm instead"
            )
    if (batches := settings.get("accumulate_grad_batches") or 1) != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={batches} is not used: an update is cut up by"
            " model.update.micro_batch_tokens; raise data.prompts_per_rollout for larger ones"
        )
