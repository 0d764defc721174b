"""Old log-probs: those of the policy before a rollout's first update, and their rounding.

A sampler, a pass without gradients and a training forward compute the same number in different
orders, so their log-probs differ by rounding. A loss on ``logprob - old_logprob`` must not act on
that difference:

- The old log-probs of the first mini-batch are those of its own training forward
  (``updater.Updater.backward_passes``), so its ratio is exactly 1 in every precision.
- The old log-probs of the later mini-batches come from the sampler, or from one more pass over the
  rollout. Their difference to the first mini-batch's training forward is the noise floor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.masked import masked_sum
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.processes.collectives import (
    all_rank_sum,
    all_rank_upper_quantile,
    broadcast_from_first,
)
from rlif_lightning.records import Completions, Rollout
from rlif_lightning.sampling import Sampling

SOURCES = ("sampler", "rescored")
OUTLIERS = 1e-3  # fraction of tokens that may differ by more than the noise floor


def fresh_tokens(inputs: LossInputs) -> Tensor:
    """Return ``[B, T]`` bool: the tokens of the rollout's own completions, not replayed ones."""
    if inputs.is_replayed is None:
        return inputs.mask
    return inputs.mask & ~inputs.is_replayed.unsqueeze(1)


def rollout_logprobs(
    policy: PolicyModel, completions: Completions, sampling: Sampling, max_tokens: int
) -> Tensor:
    """Return ``[B, T]`` log-probs of completions under a policy, from passes without gradients."""
    stats = measure_tokens(policy, completions, sampling, max_tokens)
    return broadcast_from_first(stats.logprobs)


def reference_logprobs(
    policy: PolicyModel,
    reference: PolicyModel | None,
    completions: Completions,
    sampling: Sampling,
    max_tokens: int,
) -> Tensor:
    """Return ``[B, T]`` log-probs of completions under the reference model.

    Without a reference model of its own that is the policy without its adapters.
    """
    with policy.adapters_off() if reference is None else nullcontext():
        return rollout_logprobs(reference or policy, completions, sampling, max_tokens)


def loss_inputs(
    rollout: Rollout, advantages: Tensor, old: Tensor, reference: Tensor | None, rollout_number: int
) -> LossInputs:
    """Make the ``[B, T]`` loss inputs of a whole rollout.

    Args:
        rollout: with its sampled log-probs.
        advantages: ``[B, T]``.
        old: ``[B, T]`` old log-probs of every mini-batch but the first.
        reference: ``[B, T]`` log-probs under the reference model.
        rollout_number: counted from 0.
    """
    optional: dict[str, Any] = {"ref_logprobs": reference, "token_weights": rollout.token_weights}
    optional |= {"sampled_entropy": rollout.stats.entropy}
    completion_numbers, sampled = rollout.completion_numbers(rollout_number), rollout.stats.logprobs
    return LossInputs(
        old, old, advantages, rollout.mask, completion_numbers, sampled_logprobs=sampled, **optional
    )


def old_logprobs_at_first(batch: LossInputs, current: Tensor) -> Tensor:
    """Return ``[m, T]`` old log-probs in a rollout's first mini-batch, from its forward's."""
    if batch.is_replayed is None:
        return current
    return torch.where(batch.is_replayed.unsqueeze(1), batch.old_logprobs, current)


def settle_old_logprobs(
    inputs: LossInputs, index: Tensor, forward: Tensor, rescore: Callable[[], Tensor]
) -> tuple[LossInputs, dict[str, Tensor]]:
    """Settle the old log-probs of the later mini-batches after the first forward (a collective).

    It must be called before the first optimiser step. The tokens of the first mini-batch keep the
    log-probs of its forward as their old ones, for a second pass over the rollout. Replayed
    completions keep the old log-probs and the noise floor that they came with.

    Args:
        inputs: ``[B, T]``, with the old log-probs of the later mini-batches, and the sampled ones.
        index: ``[b]`` int64, which completions the first mini-batch is.
        forward: ``[b, T]`` log-probs of its training forward; NaN where there was none.
        rescore: returns ``[B, T]`` log-probs of the rollout's own completions. Every data rank
            calls it if no token of theirs in the first mini-batch was trained on.

    Returns:
        The inputs with old log-probs and noise floor, and two figures in nats.
        ``policy/sampler_gap`` is the mean |difference| between sampled log-probs and those of the
        training forward; it is NaN without any token. ``policy/noise_floor`` bounds the
        |difference| between old log-probs and those of the training forward, for all but one token
        in a thousand.
    """
    assert inputs.sampled_logprobs is not None
    old, sampled = inputs.old_logprobs, inputs.sampled_logprobs
    found = torch.full_like(old, torch.nan)
    found[index] = broadcast_from_first(forward.to(old))  # [b, T] into [B, T]
    own = fresh_tokens(inputs)
    known = own & ~found.isnan()
    settled = torch.where(known, found, old)
    if not all_rank_sum(known.sum()):
        found, known, old = rescore(), own, sampled
    gap, num_tokens = all_rank_sum(
        torch.stack([masked_sum((found - sampled).abs(), known).double(), known.sum()])
    )
    floor = broadcast_from_first(all_rank_upper_quantile((found - old).abs(), known, OUTLIERS))
    figures = {"policy/sampler_gap": gap / num_tokens, "policy/noise_floor": floor}
    if inputs.is_replayed is not None:
        assert inputs.noise_floor is not None
        floor = torch.where(inputs.is_replayed.unsqueeze(1), inputs.noise_floor, floor)  # [B, 1]
    return replace(inputs, logprobs=settled, old_logprobs=settled, noise_floor=floor), figures
