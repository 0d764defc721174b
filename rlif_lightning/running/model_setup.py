"""The models of a run, built as its strategy has them: policy, reference, teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from torch.nn.parallel import DistributedDataParallel

from rlif_lightning.judges.base import RunModels
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rewards.held_head import heads_in
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.running.context_checks import check_contexts
from rlif_lightning.running.strategies import build_policy
from rlif_lightning.running.teachers import build_teacher, follow
from rlif_lightning.sampling import Sampling


class ModelSetup(LightningModule):
    """Builds the models, for the parts that a subclass sets.

    Attributes:
        policy: is trained; None before ``configure_model``.
        reference: the frozen start, if the objective needs it.
        teacher: of an objective that has one; its average is in checkpoints.
    """

    policy_settings: Policy
    policy: PolicyModel | None
    reference: PolicyModel | None
    teacher: PolicyModel | None
    objective: Objective
    rewards: RewardSet
    engine: RolloutEngine
    sampling: Sampling
    plan: UpdatePlan
    seed: int

    def configure_model(self) -> None:
        """Load the policy, and the reference and the teacher if the objective needs them.

        Lightning calls this on every entry.
        """
        strategy = None if self._trainer is None else self._trainer.strategy
        if self.policy is None:
            self.policy = build_policy(self.policy_settings, strategy)
        if (
            self.reference is None
            and self.objective.needs_reference
            and not self.policy.has_adapters
        ):
            reference = build_policy(self.policy_settings, strategy, frozen=True)
            # The reference is no submodule: checkpoints and strategies must not include it, since
            # it is loaded from its own files.
            object.__setattr__(self, "reference", reference)
        if self.teacher is None and self.objective.teacher is not None:
            build = partial(build_policy, strategy=strategy, frozen=True)
            self._keep_teacher(build_teacher(self.objective.teacher, self.policy, build))
        self.engine.scoring_tokens = self.plan.micro_batch_tokens
        self.engine.setup(self.policy, self.seed)
        models = self.run_models()
        for reward in self.rewards.settings.values():
            reward.head.bind(models)
        check_contexts(self, models)
        self._keep_heads_out_of_ddp()

    def _keep_heads_out_of_ddp(self) -> None:
        """Keep DDP from waiting for gradients of a head's own model: no loss of the run has any."""
        names = [
            f"rewards.{name}"
            for name, parameter in self.rewards.named_parameters()
            if parameter.requires_grad
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    def run_models(self) -> RunModels:
        """Return what the run offers to heads and judges that ask a model."""
        assert self.policy is not None
        strategy = None if self._trainer is None else self._trainer.strategy
        device = torch.device("cpu") if strategy is None else strategy.root_device
        load, longest = partial(self._frozen, strategy), self.sampling.max_new_tokens
        return RunModels(self.policy, self.policy_settings, load, device, self.seed, longest)

    def _frozen(self, strategy: Any, policy: Policy) -> PolicyModel:
        """Return a frozen model: the reference model, if it is the same, or one loaded for it."""
        if self.reference is not None and policy == self.policy_settings:
            return self.reference
        return build_policy(policy, strategy, frozen=True)

    def _keep_teacher(self, teacher: PolicyModel | None) -> None:
        """Keep an average as a submodule, whose weights are in checkpoints, others as they are."""
        if self.objective.teacher.averages:
            self.teacher = teacher
        else:
            object.__setattr__(self, "teacher", teacher)

    def drop_what_was_broken_off(self) -> None:
        """Drop gradients and evaluation modes that an earlier run of this module has left."""
        self.zero_grad()
        if self.training:
            return
        # Lightning gives modes back only where an evaluation ends without an exception. What a head
        # holds beside, such as a classifier, keeps its mode.
        heads = [each for it in self.rewards.settings.values() for each in heads_in(it.head)]
        for part in (self, self.policy, self.rewards, *heads):
            assert part is not None
            part.training = True

    def begin_teacher(self) -> None:
        """Copy the policy into the teacher's average, in a run that begins."""
        self._follow(1.0)

    def move_teacher(self) -> None:
        """Move the teacher's average towards the policy, after the updates of a rollout."""
        if self.objective.teacher is not None:
            self._follow(self.objective.teacher.ema_rate)

    def _follow(self, rate: float) -> None:
        if self.teacher is not None and self.objective.teacher.averages:
            assert self.policy is not None
            follow(self.teacher, self.policy, rate)
