"""The update: from a rollout with advantages to optimiser steps.

Each mini-batch (``update.py``) is packed into micro-batches by token budget, and their gradients
are accumulated. Whatever concerns a mini-batch as a whole is computed before it is cut up, over all
data ranks: the marks of the objective and the weights of the token losses. So neither the budget
nor the number of data ranks changes a gradient beyond rounding.

A mini-batch of 2 groups of 2 completions; group 1 got no advantage, and no token of it is marked:

    completion    tokens   advantage   trained   weight of a token by token_mean
    0 (group 0)   3        +0.7        yes       1 / 9
    1 (group 0)   2        -0.7        yes       1 / 9
    2 (group 1)   1         0          no        1 / 9: in the mean, but without a pass
    3 (group 1)   3         0          no        1 / 9

The passes hold completions 0 and 1, in one micro-batch or in two. The loss is the sum over their 5
tokens of ``weight * token_loss``, divided by nothing more, so two micro-batches add up to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.non_finite import NonFiniteGradient, non_finite_message
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.old_logprobs import (
    loss_inputs,
    reference_logprobs,
    rollout_logprobs,
    settle_old_logprobs,
)
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import (
    MiniBatch,
    UpdatePlan,
    select_completions,
    select_groups,
)
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.masked import masked_sum
from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import equal_passes, measure_tokens
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.processes.ranks import data_rank, num_data_ranks
from rlif_lightning.records import LossInputs, RewardOutput, Rollout
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class OptimizerCalls:
    """What an update asks of the owner of the optimiser.

    Attributes:
        backward: adds the gradient of one micro-batch's share of the loss. Its second argument says
            whether the micro-batch is its mini-batch's last. The shares of all data ranks sum to
            the loss. Every data rank calls it equally often, at least once for a mini-batch.
        zero_grad: drops the gradient of a failed attempt.
        step: applies the gradient unless it is not finite, and drops it; returns its norm.
    """

    backward: Callable[[Tensor, bool], None]
    zero_grad: Callable[[], None]
    step: Callable[[], float]


@dataclass(frozen=True)
class Updater:
    """Trains a policy on one rollout.

    Attributes:
        policy: is trained.
        objective: the loss.
        sampling: how the completions were drawn.
        budget: tokens of a forward and backward pass; lowered where memory runs out.
        optimizer: backward passes and optimiser steps.
        plan: how the rollout is cut into mini-batches.
        reference: the frozen reference model; None = the policy without its adapters.
    """

    policy: PolicyModel
    objective: Objective
    sampling: Sampling
    budget: TokenBudget
    optimizer: OptimizerCalls
    plan: UpdatePlan = UpdatePlan()
    reference: PolicyModel | None = None

    def update(
        self,
        rollout: Rollout,
        outputs: Mapping[str, RewardOutput],
        advantages: Tensor,
        rollout_number: int,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Make all optimiser steps of one rollout (a collective).

        Args:
            rollout: B completions of at most T tokens.
            outputs: of the reward heads, for the error message.
            advantages: ``[B, T]``.
            rollout_number: counted from 0.
            seed: of the shuffling of groups.

        Returns:
            The figures ``policy/...`` and ``update/...`` of the update.

        Raises:
            NonFiniteGradient: names the rollout and the range of every head's scores.
        """
        reference = None
        if self.objective.needs_reference:
            models = self.policy, self.reference
            reference = self.budget.run(
                lambda tokens: reference_logprobs(*models, rollout, self.sampling, tokens)
            )
        rescore = partial(
            self.budget.run,
            lambda tokens: rollout_logprobs(self.policy, rollout, self.sampling, tokens),
        )
        old = rescore() if self.plan.rescores(rollout) else rollout.stats.logprobs
        inputs = loss_inputs(rollout, advantages, old, reference, rollout_number)  # [B, T] each
        meter, norms, noise = UpdateMeter(rollout.mask.device), [], {}
        place = seed, data_rank(), num_data_ranks()
        for groups in self.plan.minibatches(rollout.num_prompts, rollout_number, *place):
            mini_batch = select_groups(inputs, rollout, groups, is_on_policy=not norms)
            forward = self.accumulate_gradient(mini_batch, meter)  # [b, T]
            if mini_batch.is_on_policy:
                inputs, noise = settle_old_logprobs(inputs, mini_batch.index, forward, rescore)
            norms.append(self.optimizer.step())
            if not math.isfinite(norms[-1]):
                raise NonFiniteGradient(non_finite_message(rollout_number, rollout, outputs))
        figures = {
            "policy/grad_norm": sum(norms) / len(norms),
            "update/micro_batch_tokens": self.budget.tokens,
        }
        return meter.means() | noise | figures

    def accumulate_gradient(self, mini_batch: MiniBatch, meter: UpdateMeter) -> Tensor:
        """Accumulate the gradient of one mini-batch, in as many passes as memory allows.

        Args:
            mini_batch: b completions.
            meter: collects the token figures.

        Returns:
            ``[b, T]`` log-probs of the forward passes, NaN where there was none.
        """
        if self.objective.needs_current and not mini_batch.is_on_policy:
            current = self.budget.run(
                lambda tokens: measure_tokens(
                    self.policy, mini_batch.completions, self.sampling, tokens
                )
            ).logprobs
            mini_batch = replace(mini_batch, inputs=replace(mini_batch.inputs, logprobs=current))

        def undo() -> None:
            self.optimizer.zero_grad()
            meter.undo()

        forward = self.budget.run(
            lambda tokens: self.backward_passes(mini_batch, tokens, meter), undo
        )
        meter.keep()
        return forward

    def backward_passes(self, mini_batch: MiniBatch, max_tokens: int, meter: UpdateMeter) -> Tensor:
        """Make the passes of one mini-batch under a budget; as :meth:`accumulate_gradient`."""
        update, device = mini_batch.inputs, mini_batch.index.device
        marks = checked_marks(self.objective, update)  # [b, T] bool
        loss_weights = aggregation_weights(
            update.mask, self.objective.aggregation, self.sampling.max_new_tokens
        )  # [b, T]
        trained = is_trained(update, marks, self.objective, mini_batch.completions.group_size)
        # A completion without any token in its mask is not packed.
        kept = replace(mini_batch.completions, mask=update.mask & trained.unsqueeze(1))
        passes = equal_passes(self.policy, list(pack(kept, max_tokens)), device, at_least=1)
        forward = torch.full_like(update.old_logprobs, torch.nan)  # [b, T]
        for number, (packed, is_own) in enumerate(passes, 1):
            stats, rows = self.policy(packed, self.sampling), packed.rows  # [m, T] each; [m]
            is_last = number == len(passes)
            if not is_own:  # a filler takes part in the collectives and adds nothing
                self.optimizer.backward(stats.logprobs.sum() * 0.0, is_last)
                continue
            batch = replace(
                select_completions(update, rows), logprobs=stats.logprobs, entropy=stats.entropy
            )
            current = stats.logprobs.detach()
            forward[rows] = torch.where(batch.mask, current, torch.nan).to(forward)
            if mini_batch.is_on_policy:
                batch = replace(batch, old_logprobs=current)
            losses = self.objective.token_loss(batch, marks[rows])  # [m, T]
            self.optimizer.backward(masked_sum(losses * loss_weights[rows], batch.mask), is_last)
            meter.add(batch, marks[rows], batch.mask, self.objective)
            meter.add_positions(packed)
            HEAP.release(device)
        return forward


def is_trained(update: LossInputs, marks: Tensor, objective: Objective, group_size: int) -> Tensor:
    """Return ``[b]`` bool: the completions of groups in which any token can get a gradient.

    The other groups get no pass; their tokens still count in the normalisers.
    """
    if objective.touches_zero_advantage:
        return torch.ones_like(update.mask[:, 0])
    touched = ((update.advantages != 0) & update.mask) | marks  # [b, T]
    of_groups = touched.view(-1, group_size, touched.shape[1]).any(-1).any(-1)  # [b / G]
    return of_groups.repeat_interleave(group_size)


def checked_marks(objective: Objective, update: LossInputs) -> Tensor:
    """Return an objective's ``[b, T]`` bool marks among all tokens of an update (a collective).

    Raises:
        ValueError: the objective returned something else; names it.
    """
    marks = objective.select(update)
    if marks.dtype != torch.bool or marks.shape != update.mask.shape:
        raise ValueError(
            f"objective {type(objective).__name__}.select returned {marks.dtype} of shape"
            f" {tuple(marks.shape)}; one bool per token, {tuple(update.mask.shape)}, is needed"
        )
    return broadcast_from_first(marks.to(update.mask.device))
