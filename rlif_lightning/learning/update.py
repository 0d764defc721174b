"""The update: from a scored rollout to optimiser steps.

The rollout's groups, shuffled, are split into mini-batches of whole groups, one optimiser step
each. Each mini-batch is packed by token budget. Whatever concerns a mini-batch as a whole (marked
tokens, normalisers) is computed before it is cut up, over all ranks; so neither the budget nor the
number of ranks changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.objectives import Objective
from rlif_lightning.learning.old_logprobs import SOURCES, rollout_logprobs
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.masked import masked_sum
from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import equal_passes, measure_tokens
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.records import LossInputs, RewardOutput, Rollout
from rlif_lightning.sampling import Sampling, purpose_seeds


@dataclass(frozen=True)
class UpdatePlan:
    """How a rollout is cut into optimiser steps.

    Args:
        updates_per_rollout: mini-batches of whole groups in one pass, one optimiser step each.
        epochs_per_rollout: passes over the rollout.
        old_logprobs: sampler | rescored (by one more pass): the old log-probs of all mini-batches
            but the first, which has those of its own forward pass.
        micro_batch_tokens: token budget of one forward and backward pass. Memory depends on it,
            results by rounding alone. It is halved when memory runs out.
        max_grad_norm: the gradient's norm is clipped to this; null = not clipped.

    Raises:
        ValueError: a number out of range, or an unknown name.
    """

    updates_per_rollout: int = 4
    epochs_per_rollout: int = 1
    old_logprobs: str = "sampler"
    micro_batch_tokens: int = 8192
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("updates_per_rollout", "epochs_per_rollout", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} must be positive, or null for no clipping"
            )
        if self.old_logprobs not in SOURCES:
            raise ValueError(
                f"old_logprobs={self.old_logprobs!r} is unknown; use one of {', '.join(SOURCES)}"
            )

    def check(self, num_prompts: int) -> None:
        """Refuse a step with fewer prompts than updates.

        Raises:
            ValueError: names both settings.
        """
        if num_prompts < self.updates_per_rollout:
            raise ValueError(
                f"data.prompts_per_rollout={num_prompts} is less than"
                f" model.update.updates_per_rollout={self.updates_per_rollout}: an update would"
                " have no group; raise the one or lower the other"
            )

    def rescores(self, rollout: Rollout) -> bool:
        """Whether a rollout needs one more pass; not that of an engine whose completions the policy has scored."""
        return self.old_logprobs == "rescored" and rollout.engine_logprobs is None

    @property
    def num_updates(self) -> int:
        """Optimiser steps per rollout."""
        return self.updates_per_rollout * self.epochs_per_rollout

    def minibatches(
        self, num_prompts: int, rollout_number: int, seed: int, rank: int, world_size: int
    ) -> Iterator[list[int]]:
        """This rank's groups of each mini-batch (possibly none).

        The shuffle is of all ranks' prompts together, which are dealt out one by one (prompt i of
        the step is on rank ``i % world_size``), so the mini-batches are the same on any number of
        ranks.
        """
        everything = num_prompts * world_size
        for epoch in range(self.epochs_per_rollout):
            order = np.random.default_rng(
                purpose_seeds("shuffle", seed, rollout_number, epoch)
            ).permutation(everything)
            for part in np.array_split(order, self.updates_per_rollout):
                yield sorted(int(i) // world_size for i in part if i % world_size == rank)


@dataclass(frozen=True)
class MiniBatch:
    """Some groups of a rollout, for one optimiser step.

    Attributes:
        inputs: ``[b, T]`` loss inputs; ``logprobs`` are those that tokens are ranked by.
        prompt_ids: the groups' prompts, each ``[L_p]``.
        completion_ids: ``[b, T]``.
        group_size: G.
        rows: ``[b]`` int64, the rows' numbers in the rollout.
        on_policy: the policy has not moved since the rollout. The old log-probs are then those of
            the mini-batch's own training forward, and the ratio is exactly 1.
    """

    inputs: LossInputs
    prompt_ids: list[Tensor]
    completion_ids: Tensor
    group_size: int
    rows: Tensor
    on_policy: bool = False


def select_groups(
    inputs: LossInputs, rollout: Rollout, groups: list[int], on_policy: bool = False
) -> MiniBatch:
    """The rows of some groups of a rollout, whose loss inputs are ``[B, T]``."""
    size = rollout.group_size
    rows = [p * size + g for p in groups for g in range(size)]
    index = torch.tensor(rows, dtype=torch.int64, device=rollout.mask.device)
    prompt_ids = [rollout.prompts.token_ids[p] for p in groups]
    return MiniBatch(
        take_rows(inputs, index), prompt_ids, rollout.completion_ids[index], size, index, on_policy
    )


def take_rows(inputs: LossInputs, rows: Tensor) -> LossInputs:
    """The same loss inputs for some rows only."""
    given = {name: value for name, value in vars(inputs).items() if value is not None}
    return LossInputs(
        **{name: value[rows] if value.ndim else value for name, value in given.items()}
    )


def trained_rows(
    update: LossInputs, marks: Tensor, objective: Objective, group_size: int
) -> Tensor:
    """``[B]`` bool: rows that can get a gradient. The others are skipped; their tokens still count in normalisers."""
    if objective.touches_zero_advantage:
        return torch.ones_like(update.mask[:, 0])
    touched = ((update.advantages != 0) & update.mask) | marks
    return (
        touched.view(-1, group_size, touched.shape[1]).any(-1).any(-1).repeat_interleave(group_size)
    )


def marked(objective: Objective, update: LossInputs) -> Tensor:
    """``[B, T]`` bool marks of an objective among all tokens of an update, on their device (a collective).

    Raises:
        ValueError: the objective marked something else; names it.
    """
    marks = objective.select(update)
    if marks.dtype != torch.bool or marks.shape != update.mask.shape:
        raise ValueError(
            f"objective {type(objective).__name__}.select returned {marks.dtype} of shape"
            f" {tuple(marks.shape)};"
            f" one bool per token, {tuple(update.mask.shape)}, is needed"
        )
    return broadcast_from_first(marks.to(update.mask.device))


def reference_logprobs(
    policy: PolicyModel,
    reference: PolicyModel | None,
    rollout: Rollout,
    sampling: Sampling,
    micro_batch_tokens: int,
) -> Tensor:
    """``[B, T]`` log-probs under the reference model, which is the policy without its adapters if there is none."""
    with policy.adapters_off() if reference is None else nullcontext():
        return rollout_logprobs(reference or policy, rollout, sampling, micro_batch_tokens)


def backward_update(
    policy: PolicyModel,
    objective: Objective,
    mini_batch: MiniBatch,
    sampling: Sampling,
    micro_batch_tokens: int,
    backward: Callable[[Tensor, bool], None],
    meter: UpdateMeter,
) -> Tensor:
    """Accumulate the gradient of one mini-batch.

    Args:
        backward: called with each micro-batch's share of the loss, and whether it is the last one;
            the shares of all ranks sum to the loss. Every rank calls it equally often, at least
            once.
        meter: collects the token figures.

    Returns:
        ``[b, T]`` log-probs of the forward passes, NaN where there was none.
    """
    update, group_size = mini_batch.inputs, mini_batch.group_size
    marks = marked(objective, update)
    weights = aggregation_weights(update.mask, objective.aggregation, sampling.max_new_tokens)
    kept = update.mask & trained_rows(update, marks, objective, group_size).unsqueeze(1)
    rows_of = (mini_batch.prompt_ids, mini_batch.completion_ids, kept, group_size)
    passes = equal_passes(
        policy, list(pack(*rows_of, micro_batch_tokens)), update.mask.device, at_least=1
    )
    found = torch.full_like(update.old_logprobs, torch.nan)
    for number, (packed, own) in enumerate(passes, 1):
        stats, rows, is_last = policy(packed, sampling), packed.rows, number == len(passes)
        if not own:
            backward(stats.logprobs.sum() * 0.0, is_last)
            continue
        batch = replace(take_rows(update, rows), logprobs=stats.logprobs, entropy=stats.entropy)
        found[rows] = torch.where(batch.mask, stats.logprobs.detach(), torch.nan).to(found)
        if mini_batch.on_policy:
            batch = replace(batch, old_logprobs=stats.logprobs.detach())
        losses = objective.token_loss(batch, marks[rows])
        backward(masked_sum(losses * weights[rows], batch.mask), is_last)
        meter.add(batch, marks[rows], batch.mask, objective)
        meter.add_positions(packed)
        HEAP.release(update.mask.device)
    return found


def accumulate_gradient(
    policy: PolicyModel,
    objective: Objective,
    mini_batch: MiniBatch,
    sampling: Sampling,
    budget: TokenBudget,
    backward: Callable[[Tensor, bool], None],
    meter: UpdateMeter,
    forget: Callable[[], None],
) -> Tensor:
    """The gradient of one mini-batch in as many passes as memory wants; as :func:`backward_update` otherwise.

    Args:
        budget: tokens of a pass; lowered where memory runs out.
        forget: drops the gradient of a failed attempt.
    """
    if objective.needs_current and not mini_batch.on_policy:
        rows_of = (
            mini_batch.prompt_ids,
            mini_batch.completion_ids,
            mini_batch.inputs.mask,
            mini_batch.group_size,
        )
        current = budget.run(
            lambda tokens: measure_tokens(policy, *rows_of, sampling, tokens)
        ).logprobs
        mini_batch = replace(mini_batch, inputs=replace(mini_batch.inputs, logprobs=current))

    def undo() -> None:
        forget()
        meter.undo()

    given = (policy, objective, mini_batch, sampling)
    found = budget.run(lambda tokens: backward_update(*given, tokens, backward, meter), undo)
    meter.keep()
    return found


def non_finite_message(
    rollout_number: int, rollout: Rollout, outputs: dict[str, RewardOutput]
) -> str:
    """Why a step was stopped, and where to look: the sampled statistics and every head's range of scores."""
    broken = [name for name, values in vars(rollout.stats).items() if not values.isfinite().all()]
    sampled = (
        f"the sampled {', '.join(broken)} were not finite either"
        if broken
        else "what was sampled was finite"
    )
    ranges = []
    for name, output in outputs.items():
        valid = output.scores[~output.scores.isnan()].tolist() or [0.0]
        ranges.append(f"{name} in [{min(valid):.4g}, {max(valid):.4g}]")
    return (
        f"the gradient of rollout {rollout_number} is not finite; {sampled}; scores: {', '.join(ranges)}."
        " The parameters were"
        " left as they are. Lower model.optimizer.lr or the weight of a head with huge scores, or"
        " train in float32"
    )
