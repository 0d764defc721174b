"""What a loss reads (axis letters: records.py)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlif_lightning.model.token_stats import TeacherLogprobs


@dataclass(frozen=True)
class LossInputs:
    """The inputs of a loss, for one optimiser step or for one of its micro-batches.

    Attributes:
        logprobs: ``[B, T]`` under the policy being trained, with the graph in a micro-batch.
        old_logprobs: ``[B, T]`` under the policy before their own rollout's first update.
        advantages: ``[B, T]``, constant over a completion unless a token-level kind made it.
        mask: ``[B, T]`` bool.
        completion_numbers: ``[B]`` int64 (Rollout.completion_numbers).
        entropy: optional ``[B, T]``, with the graph, for the entropy bonus.
        ref_logprobs: optional ``[B, T]`` under the frozen reference model.
        token_weights: optional ``[B, T]`` factors of the policy loss.
        sampled_logprobs: optional ``[B, T]``, of Rollout.stats, for the sampler's gap.
        sampled_entropy: optional ``[B, T]``, of Rollout.stats, for ``select`` alone.
        noise_floor: optional scalar or ``[B, 1]``, nats: what differs by less is rounding.
        is_replayed: optional ``[B]`` bool, True for completions of an earlier rollout.
        teacher: optional, a teacher's distribution at each token, K candidates.
        candidates: optional ``[B, T, K + 1]`` log-probs of the teacher's candidates, and of all
            other tokens, under the policy, with the graph in a micro-batch.
        future_baseline: optional ``[B, T]``, subtracted from a token's later divergence.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    completion_numbers: Tensor
    entropy: Tensor | None = None
    ref_logprobs: Tensor | None = None
    token_weights: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    sampled_entropy: Tensor | None = None
    noise_floor: Tensor | None = None
    is_replayed: Tensor | None = None
    teacher: TeacherLogprobs | None = None
    candidates: Tensor | None = None
    future_baseline: Tensor | None = None
