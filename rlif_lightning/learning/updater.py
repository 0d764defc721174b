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
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlif_lightning.learning.lessons import Lesson, candidates_of
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.marks import picked
from rlif_lightning.learning.non_finite import NonFiniteGradient, non_finite_message
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.old_logprobs import (
    fresh_tokens,
    loss_inputs,
    old_logprobs_at_first,
    reference_logprobs,
    rollout_logprobs,
    settle_old_logprobs,
)
from rlif_lightning.learning.replay import OldGroup, ReplayBuffer, joined
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
from rlif_lightning.model.head import CandidateReader
from rlif_lightning.model.packing import Packed, pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import equal_passes
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.processes.ranks import data_rank, num_data_ranks
from rlif_lightning.records import Completions, RewardOutput, Rollout, TokenStats
from rlif_lightning.sampling import Sampling

T = TypeVar("T")


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
        replay: ReplayBuffer | None = None,
        lesson: Lesson | None = None,
    ) -> dict[str, Any]:
        """Make all optimiser steps of one rollout (a collective).

        Args:
            rollout: B completions of at most T tokens.
            outputs: of the reward heads, for the error message.
            advantages: ``[B, T]``.
            rollout_number: counted from 0.
            seed: of the shuffling of groups.
            replay: has old groups that join the update, and keeps some of its own; None = off.
            lesson: what a teacher reads; None = the objective has none.

        Returns:
            The figures ``policy/...`` and ``update/...`` of the update.

        Raises:
            NonFiniteGradient: names the rollout and the range of every head's scores.
        """
        completions, size = rollout.completions, rollout.group_size
        inputs = loss_inputs(rollout, advantages, rollout.stats.logprobs, None, rollout_number)
        inputs = lesson.masked(inputs) if lesson else inputs
        drawn = [] if replay is None else replay.draw(rollout_number, seed, size)
        place = data_rank(), num_data_ranks()
        if drawn:
            completions, inputs = joined(completions, inputs, drawn[place[0] :: place[1]])
        own = replace(completions, mask=fresh_tokens(inputs))
        rescore = partial(self._measured, partial(rollout_logprobs, self.policy, own))
        inputs = self._with_other_logprobs(
            inputs, completions, rescore if self.plan.rescores(rollout) else None
        )  # [B, T] each
        meter, norms, noise = UpdateMeter(rollout.mask.device), [], {}
        counts = rollout.num_prompts, rollout_number, seed, *place, len(drawn)
        for groups in self.plan.minibatches(*counts):
            mini_batch = select_groups(inputs, completions, groups, is_on_policy=not norms)
            mini_batch = mini_batch if lesson is None else self._taught(mini_batch, lesson)
            forward = self.accumulate_gradient(mini_batch, meter)  # [b, T]
            if mini_batch.is_on_policy:
                inputs, noise = settle_old_logprobs(inputs, mini_batch.index, forward, rescore)
            norms.append(self.optimizer.step())
            if not math.isfinite(norms[-1]):
                raise NonFiniteGradient(non_finite_message(rollout_number, rollout, outputs))
        figures = self._figures(meter, norms, lesson)
        if replay is not None:
            replay.keep(completions, inputs, rollout_number, seed)
            figures |= meter.replayed_means() | replay_figures(drawn, rollout_number)
        return noise | figures

    def _figures(
        self, meter: UpdateMeter, norms: list[float], lesson: Lesson | None
    ) -> dict[str, Any]:
        """Return the figures of all updates of a rollout (a collective)."""
        figures = meter.means() | {
            "policy/grad_norm": sum(norms) / len(norms),
            "update/micro_batch_tokens": self.budget.tokens,
        }
        if lesson is None:
            return figures
        return figures | lesson.figures(meter.sums.device) | meter.taught_means()

    def _taught(self, mini_batch: MiniBatch, lesson: Lesson) -> MiniBatch:
        """Add the teacher's distribution, and the siblings' later divergence (a collective)."""
        inputs = mini_batch.inputs
        completions = replace(mini_batch.completions, mask=inputs.mask)
        read = partial(lesson.read, self.policy, completions, mini_batch.index)
        inputs = replace(inputs, teacher=(teacher := self._measured(read)))
        if self.objective.needs_candidates:
            measure = partial(candidates_of, self.policy, completions, teacher)
            known = replace(inputs, candidates=self._measured(measure))
            baseline = self.objective.future_baseline(known, completions.group_size)
            inputs = replace(inputs, future_baseline=baseline)
        return replace(mini_batch, inputs=inputs)

    def _measured(self, measure: Callable[[Sampling, int], T]) -> T:
        """Return what passes without gradients measure, under the token budget."""
        return self.budget.run(lambda tokens: measure(self.sampling, tokens))

    def _with_other_logprobs(
        self, inputs: LossInputs, completions: Completions, rescore: Callable[[], Tensor] | None
    ) -> LossInputs:
        """Add the reference log-probs, if the objective needs them, and rescored old ones."""
        if self.objective.needs_reference:
            reference = partial(reference_logprobs, self.policy, self.reference, completions)
            inputs = replace(inputs, ref_logprobs=self._measured(reference))
        if rescore is None:
            return inputs
        old = rescore()
        if inputs.is_replayed is not None:
            old = torch.where(inputs.is_replayed.unsqueeze(1), inputs.old_logprobs, old)
        return replace(inputs, logprobs=old, old_logprobs=old)

    def accumulate_gradient(self, mini_batch: MiniBatch, meter: UpdateMeter) -> Tensor:
        """Accumulate the gradient of one mini-batch, in as many passes as memory allows.

        Args:
            mini_batch: b completions.
            meter: collects the token figures.

        Returns:
            ``[b, T]`` log-probs of the forward passes, NaN where there was none.
        """
        if self.objective.needs_current:
            mini_batch = self._with_current(mini_batch)

        def undo() -> None:
            self.optimizer.zero_grad()
            meter.undo()

        forward = self.budget.run(
            lambda tokens: self.backward_passes(mini_batch, tokens, meter), undo
        )
        meter.keep()
        return forward

    def _with_current(self, mini_batch: MiniBatch) -> MiniBatch:
        """Add the current policy's log-probs where they are not the old ones (a collective)."""
        inputs, wanted = mini_batch.inputs, mini_batch.completions
        if mini_batch.is_on_policy:
            if inputs.is_replayed is None:
                return mini_batch
            wanted = replace(wanted, mask=wanted.mask & inputs.is_replayed.unsqueeze(1))
        current = self._measured(partial(rollout_logprobs, self.policy, wanted))
        if mini_batch.is_on_policy:
            current = torch.where(wanted.mask, current, inputs.logprobs)
        return replace(mini_batch, inputs=replace(inputs, logprobs=current))

    def backward_passes(self, mini_batch: MiniBatch, max_tokens: int, meter: UpdateMeter) -> Tensor:
        """Make the passes of one mini-batch under a budget; as :meth:`accumulate_gradient`."""
        marks = checked_marks(self.objective, mini_batch.inputs)  # [b, T]
        update, device = replace(mini_batch.inputs, sampled_entropy=None), mini_batch.index.device
        loss_weights = aggregation_weights(
            update.mask, self.objective.aggregation, self.sampling.max_new_tokens
        )  # [b, T]
        trained = is_trained(update, marks, self.objective, mini_batch.completions.group_size)
        # A completion without any token in its mask is not packed.
        kept = replace(mini_batch.completions, mask=update.mask & trained.unsqueeze(1))
        passes = equal_passes(self.policy, list(pack(kept, max_tokens)), device, at_least=1)
        forward = torch.full_like(update.old_logprobs, torch.nan)  # [b, T]
        for number, (packed, is_own) in enumerate(passes, 1):
            stats, candidates = self._forward(packed, update, is_own)  # [m, T], [m, T, K + 1]
            is_last, rows = number == len(passes), packed.rows  # [m]
            if not is_own:  # a filler takes part in the collectives and adds nothing
                self.optimizer.backward(stats.logprobs.sum() * 0.0, is_last)
                continue
            known = {"entropy": stats.entropy, "candidates": candidates}
            batch = replace(select_completions(update, rows), logprobs=stats.logprobs, **known)
            current = stats.logprobs.detach()
            forward[rows] = torch.where(batch.mask, current, torch.nan).to(forward)
            if mini_batch.is_on_policy:
                batch = replace(batch, old_logprobs=old_logprobs_at_first(batch, current))
            own_marks = self.objective.micro_batch_marks(batch, marks[rows])  # [m, T]
            losses = self.objective.token_loss(batch, own_marks)  # [m, T]
            self.optimizer.backward(masked_sum(losses * loss_weights[rows], batch.mask), is_last)
            meter.add(batch, own_marks, batch.mask, self.objective)
            meter.add_positions(packed)
            HEAP.release(device)
        return forward

    def _forward(
        self, packed: Packed, update: LossInputs, is_own: bool
    ) -> tuple[TokenStats, Tensor | None]:
        """Return a pass's statistics, and the log-probs of the teacher's candidates if any."""
        if update.teacher is None or not is_own:
            return self.policy(packed, self.sampling), None
        return self.policy(packed, self.sampling, CandidateReader(update.teacher.ids))


def replay_figures(drawn: list[OldGroup], rollout_number: int) -> dict[str, float]:
    """Return how many groups of all data ranks are replayed, and their mean age in rollouts."""
    ages = [rollout_number - group.rollout_number for group in drawn]
    return {
        "replay/groups": float(len(ages)),
        "replay/age": sum(ages) / len(ages) if ages else math.nan,
    }


def is_trained(update: LossInputs, marks: Tensor, objective: Objective, group_size: int) -> Tensor:
    """Return ``[b]`` bool: the completions of groups in which any token can get a gradient.

    The other groups get no pass; their tokens still count in the normalisers.
    """
    if objective.touches_zero_advantage:
        return torch.ones_like(update.mask[:, 0])
    touched = ((update.advantages != 0) & update.mask) | picked(marks)  # [b, T]
    of_groups = touched.view(-1, group_size, touched.shape[1]).any(-1).any(-1)  # [b / G]
    return of_groups.repeat_interleave(group_size)


def checked_marks(objective: Objective, update: LossInputs) -> Tensor:
    """Return an objective's ``[b, T]`` marks among all tokens of an update (a collective).

    Raises:
        ValueError: the objective returned something else; names it.
    """
    marks = objective.select(update)
    is_mark = marks.dtype == torch.bool or marks.dtype.is_floating_point
    if not is_mark or marks.shape != update.mask.shape:
        raise ValueError(
            f"objective {type(objective).__name__}.select returned {marks.dtype} of shape"
            f" {tuple(marks.shape)}; one bool or float per token, {tuple(update.mask.shape)}, is"
            " needed"
        )
    return broadcast_from_first(marks.to(update.mask.device))
