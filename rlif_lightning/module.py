"""The LightningModule: wires policy, reference model, reward heads, objective and logging.

``training_step`` is the whole method in order: rollout, rewards, advantages, update, log. One batch
of prompts is one rollout. ``global_step`` counts optimiser steps, of which a rollout makes
``updates_per_rollout * epochs_per_rollout``.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from rlif_lightning.data.described import Described
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.evaluation.evaluation_steps import EvaluationSteps
from rlif_lightning.evaluation.evaluator import Evaluation, Evaluator
from rlif_lightning.evaluation.label_checks import check_labels
from rlif_lightning.evaluation.policy_use import PolicyUse
from rlif_lightning.learning.advantages import GDPO, Advantage
from rlif_lightning.learning.answer_tokens import AnswerTokens, weighed
from rlif_lightning.learning.dynamic_sampling import DynamicSampling
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.muon import mark_embeddings
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.learning.optimizer import (
    LearningRateSchedule,
    build_optimizer,
    only_optimizer,
    only_schedule,
    switch_weights,
)
from rlif_lightning.learning.replay import Replay, ReplayBuffer
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.given_policy import as_policy
from rlif_lightning.model.loading import PolicyLike
from rlif_lightning.parallel.fsdp import clip_gradients
from rlif_lightning.processes.collectives import all_process_means, all_rank_sum
from rlif_lightning.processes.ranks import num_data_ranks, share_completions
from rlif_lightning.records import Prompts
from rlif_lightning.rewards.given import RewardLike, as_rewards
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.running.best_value import tell_unknown
from rlif_lightning.running.draw import draw
from rlif_lightning.running.look_ahead import upcoming_prompts
from rlif_lightning.running.model_setup import ModelSetup
from rlif_lightning.running.run_settings import describe_run, readable
from rlif_lightning.running.setup_checks import check_run
from rlif_lightning.running.strategies import TensorParallelStrategy, check_strategy
from rlif_lightning.running.teachers import lesson_of
from rlif_lightning.sampling import Sampling
from rlif_lightning.setting_types import check_arguments


class RLIFModule(Described, EvaluationSteps, PolicyUse, ModelSetup):
    """Trains a policy with rewards computed from its own samples.

    Args:
        policy: which model is trained; in Python also a name or folder.
        rewards: name -> reward head with weight and gate; in Python also a head alone.
        advantage: how rewards become advantages.
        objective: the loss; callbacks may replace it during a run.
        sampling: how completions are drawn in training.
        engine: what draws them.
        evaluation: how validate and test measure.
        dynamic_sampling: what becomes of groups without signal; null = they stay in the update.
        answer_tokens: how much gradient the final answer's tokens get; null = as all others.
        update: how a rollout is cut into optimiser steps.
        replay: how many old groups join each rollout's update; null = none.
        optimizer: makes the optimiser of the parameters to train; in YAML a class path with
            arguments, in Python such as ``functools.partial(torch.optim.AdamW, lr=1e-4)``.
            By default AdamW with lr 1e-6 and weight_decay 0, fused.
        schedule: the learning rate over optimiser steps.
        group_size: G, completions per prompt; null = that of the data module.
        answer_column: the gold answers' column, for measuring only; null = that of the data module.
        seed: of sampling and shuffling (linked from seed_everything).

    Attributes:
        fits_next: what ``fit`` refuses is refused in ``validate`` already, before the first
            evaluation.
        prompt_table: what heads and callbacks remember of each problem.
    """

    fits_next = False

    def __init__(
        self,
        policy: PolicyLike,
        rewards: dict[str, RewardLike],
        *,
        advantage: Advantage = GDPO(),
        objective: Objective = KLCov(),
        sampling: Sampling = Sampling(),
        engine: RolloutEngine | None = None,
        evaluation: Evaluation = Evaluation(),
        dynamic_sampling: DynamicSampling | None = None,
        answer_tokens: AnswerTokens | None = None,
        update: UpdatePlan = UpdatePlan(),
        replay: Replay | None = None,
        optimizer: OptimizerCallable = lambda given: AdamW(given, lr=1e-6, weight_decay=0.0),
        schedule: LearningRateSchedule = LearningRateSchedule(),
        group_size: int | None = None,
        answer_column: str | None = None,
        seed: int = 0,
    ):
        given = {"policy": as_policy(policy), "rewards": as_rewards(rewards)}
        check_arguments(RLIFModule, locals() | given)
        super().__init__()
        self.automatic_optimization = False
        self.remember(**given)
        self.policy_settings, self.policy, self.reference = given["policy"], None, None
        self.teacher, self.first_teacher = None, objective.teacher  # a model; its settings
        needed, self.prompt_table = objective.needs_rewards, PromptTable()
        self.rewards = RewardSet(given["rewards"], answer_column, needed)
        self.rewards.use_table(self.prompt_table)
        self.advantage, self.objective, self.sampling = advantage, objective, sampling
        self.engine, self.evaluator = engine or NativeEngine(), Evaluator(evaluation)
        self.dynamic_sampling, self.answer_tokens = dynamic_sampling, answer_tokens
        self.plan, self.budget = update, TokenBudget(update.micro_batch_tokens)
        self.replay_buffer = None if replay is None else ReplayBuffer(replay)
        self.make_optimizer, self.schedule = optimizer, schedule
        self._given = {"group_size": group_size, "answer_column": answer_column}
        self.answer_column, self.seed, self.group_size = answer_column, seed, group_size or 0
        self.register_buffer("num_rollouts", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Refuse settings that would fail later, or silently do nothing.

        Raises:
            ValueError: names the argument and the remedy.
        """
        check_strategy(self.trainer.strategy)
        share_completions(isinstance(self.trainer.strategy, TensorParallelStrategy))
        data = getattr(self.trainer, "datamodule", None)
        self.read_settings_of(data)
        check_labels(data, self.evaluator, self.rewards, stage)
        check_run(self, data if isinstance(data, PromptData) else None, stage)

    def read_settings_of(self, data: Any) -> None:
        """Take the group size and the gold answers' column from the data module.

        Args:
            data: the data module; one without these attributes, or None, has nothing to say.

        Raises:
            ValueError: module and data module differ, or nobody gives a group size of at least 1.
        """
        if (given := self._given["group_size"]) is not None and given < 1:
            raise ValueError(f"group_size={given} of RLIFModule must be at least 1")
        for name, given in self._given.items():
            if not hasattr(data, name):
                continue
            found = getattr(data, name)
            if given is not None and found != given:
                raise ValueError(
                    f"{name}={given!r} of RLIFModule differs from {name}={found!r} of"
                    f" {type(data).__name__}; set it in the data module alone"
                )
            setattr(self, name, found)
        if not self.group_size:
            raise ValueError(
                "group_size is not set: give it to RLIFModule, or use a data module that has it,"
                " such as PromptData"
            )
        self.rewards.hide(self.answer_column)

    def configure_optimizers(self) -> Any:
        """Return the optimiser of the trainable parameters and its schedule by optimiser step."""
        assert self.policy is not None
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        mark_embeddings(self.policy.causal_lm)
        optimizer = build_optimizer(self.make_optimizer, trained)
        return [optimizer], [self.schedule.build(optimizer, self.trainer.max_steps)]

    def on_train_start(self) -> None:
        """Give the engine a source of coming prompts, and begin the teacher's average.

        What an earlier run of this module has left, which an exception ended, is dropped.
        """
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            tell_unknown(callback, self)
        self.drop_what_was_broken_off()
        self.prompt_table.forget_unread()
        if not int(self.num_rollouts):  # a fork has put other weights into the policy
            self.begin_teacher()
        only_schedule(self.lr_schedulers())
        self.engine.look_ahead(partial(upcoming_prompts, self), int(self.num_rollouts))

    def training_step(self, prompts: Prompts, batch_idx: int) -> dict[str, Any]:
        """Make one rollout and its updates.

        A schedule-free optimiser holds the weights that are trained in here alone, so that
        whatever measures, saves or exports between steps finds those that are used.
        """
        optimizer = only_optimizer(self.trainer.optimizers)
        switch_weights(optimizer, trains=True)
        try:
            return self._rollout_and_updates(prompts)
        finally:  # a notebook goes on with this policy
            switch_weights(optimizer, trains=False)

    def _rollout_and_updates(self, prompts: Prompts) -> dict[str, Any]:
        number, started = int(self.num_rollouts), time.perf_counter()
        with self.prompt_table.visiting(number, self.trainer.current_epoch):
            drawn = draw(self, prompts, number)
        rollout, outputs = without_dropped(drawn.rollout, drawn.outputs)
        length = self.sampling.max_new_tokens
        loss_weights = aggregation_weights(rollout.mask, self.objective.aggregation, length)
        trained, figures = rollout, drawn.figures
        if self.answer_tokens is not None and self.policy is not None:
            factors, found = self.answer_tokens.factors(rollout, self.policy.tokenizer)
            loss_weights, trained = loss_weights * factors, weighed(rollout, factors)
            figures = figures | found
        if not self.objective.uses_advantages:
            loss_weights = None
        advantages, metrics = score_rollout(
            rollout, outputs, self.advantage, self.rewards.weights, loss_weights
        )
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if hasattr(callback, "on_rollout_scored"):
                callback.on_rollout_scored(self.trainer, self, metrics)
        lesson, scored = lesson_of(self, rollout, outputs), time.perf_counter()
        metrics, num_sampled = metrics | figures, all_rank_sum(drawn.num_tokens)
        metrics |= self._updater().update(
            trained, outputs, advantages, number, self.seed, self.replay_buffer, lesson
        )
        self.num_rollouts += 1
        self.prompt_table.gather()
        self.move_teacher()
        times = {
            "rollout": drawn.seconds,
            "reward": scored - started - drawn.seconds,
            "update": time.perf_counter() - scored,
        }
        metrics |= {f"time/{phase}": seconds for phase, seconds in times.items()}
        metrics["rollout/tokens_per_second"] = float(num_sampled) / times["rollout"]
        metrics["update/tokens_per_second"] = float(metrics["update/tokens"]) / times["update"]
        metrics["policy/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._log(metrics, len(prompts))
        made = {"stats": rollout.stats, "rollout": rollout, "rewards": outputs}
        return made | {"advantages": advantages, "drawn": drawn.rollout}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put settings, replay buffer and prompt table into the checkpoint; all processes agree."""
        describe_run(checkpoint, self)
        if self.replay_buffer is not None:
            checkpoint["replay"] = self.replay_buffer.state_dict()
        if self.prompt_table.columns:
            checkpoint["prompt_table"] = self.prompt_table.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's replay buffer and prompt table; empty where there is none."""
        if self.replay_buffer is not None:
            self.replay_buffer.load_state_dict(checkpoint.get("replay"))
        self.prompt_table.load_state_dict(readable(checkpoint).get("prompt_table"))

    def _updater(self) -> Updater:
        assert self.policy is not None
        zero_grad = self.trainer.optimizers[0].zero_grad
        calls = OptimizerCalls(self._backward, zero_grad, self._optimizer_step)
        return Updater(
            self.policy,
            self.objective,
            self.sampling,
            self.budget,
            calls,
            self.plan,
            self.reference,
        )

    def _backward(self, loss: Tensor, is_last: bool) -> None:
        strategy: Any = self.trainer.strategy
        # One all-reduce serves all micro-batches of an update.
        is_local = not is_last and num_data_ranks() > 1
        with strategy.block_backward_sync() if is_local else nullcontext():
            # The strategies average gradients over data ranks; the loss shares of all data ranks
            # must sum up instead.
            self.manual_backward(loss * num_data_ranks())

    def _optimizer_step(self) -> float:
        """Clip the gradient, step optimiser and schedule, and return the norm before clipping.

        A gradient that is not finite is dropped, and nothing is stepped.
        """
        optimizer: Any = self.optimizers()
        schedule = only_schedule(self.lr_schedulers())
        assert self.policy is not None
        norm = float(clip_gradients(self.policy, self.plan.max_grad_norm or math.inf))
        if math.isfinite(norm):  # the norm is the same on every data rank
            optimizer.step()
            if schedule is not None:
                schedule.step()
        optimizer.zero_grad()
        return norm

    def _log(self, metrics: dict[str, Any], batch_size: int) -> None:
        shown = {"policy/entropy", "rollout/length", "vote/largest_cluster"}
        for name, value in all_process_means(metrics, self.device).items():
            bar = name in shown or (name.startswith("reward/") and name.endswith("/mean"))
            self.log(name, value, prog_bar=bar, batch_size=batch_size)
