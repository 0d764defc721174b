"""Rollouts from another sampler's completions, with the policy's own token statistics.

A sampler with other kernels and another precision does not compute the policy's log-probs. So the
policy computes old log-probs, entropy and self-certainty, in packed passes without gradients. The
sampler's log-probs are stored for the logged gap, and for token weights that correct the loss for
having sampled from another distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import Completions, Prompts, Rollout
from rlif_lightning.rollout.importance_weights import Correction
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.rollout.turn_taking import Turns
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class Drawn:
    """One completion, or one turn, of another sampler.

    Attributes:
        ids: its tokens, a final end-of-sequence token included.
        logprobs: the log-probability of each token, nats, in the distribution that the sampler drew
            it from; NaN = the sampler did not draw it.
        ended: whether it ended by itself.
    """

    ids: Sequence[int]
    logprobs: Sequence[float]
    ended: bool


@dataclass(frozen=True)
class Draws:
    """The completions of one rollout, of another sampler.

    Attributes:
        completions: B, prompt-major; those of episodes hold observations too.
        prompts: P, that they continue.
        turns: of episodes; None = single turns.
    """

    completions: Sequence[Drawn]
    prompts: Prompts
    turns: Turns | None = None


def as_rollout(
    policy: PolicyModel,
    draws: Draws,
    sampling: Sampling,
    max_tokens: int,
    correction: Correction | None,
) -> Rollout:
    """Make a rollout of completions that another sampler drew, with the policy's own statistics.

    Args:
        policy: measures the completions.
        draws: the completions, as many for each prompt.
        sampling: how they were drawn.
        max_tokens: token budget of one forward pass.
        correction: makes the token weights; None = no weights.

    Returns:
        The rollout; one of episodes has no texts yet.

    Raises:
        RuntimeError: the sampler drew an id that is no token.
    """
    drawn = draws.completions
    check_tokens(policy, drawn)
    if sampling.train_stop and draws.turns is None:
        drawn = [closed(row, policy, sampling.max_new_tokens) for row in drawn]
    completions = _completions(draws.prompts, drawn, draws.turns)
    stats = measure_tokens(policy, completions, sampling, max_tokens)
    reported = _padded([row.logprobs for row in drawn], stats.logprobs)
    # A token that was not drawn has no log-prob of the sampler's.
    engine_logprobs = torch.where(reported.isnan(), stats.logprobs, reported)
    weights = is_bounded = None
    if correction is not None:
        weights, is_bounded = correction.weights(stats.logprobs, engine_logprobs, completions.mask)
    stops, rows = StopStrings(policy.tokenizer, sampling.stop), drawn if draws.turns is None else ()
    return Rollout(
        draws.prompts,
        completions.completion_ids,
        completions.mask,
        stats,
        [stops.text(torch.tensor(row.ids)) for row in rows],
        torch.tensor([row.ended for row in drawn], device=completions.mask.device),
        completions.group_size,
        engine_logprobs,
        token_weights=weights,
        is_bounded=is_bounded,
    )


def check_tokens(policy: PolicyModel, drawn: Sequence[Drawn]) -> None:
    """Refuse ids that are no tokens.

    Raises:
        RuntimeError: names the id and the remedy.
    """
    highest = max(max(row.ids) for row in drawn)
    if policy.num_tokens is not None and highest >= policy.num_tokens:
        raise RuntimeError(
            f"the engine drew token {highest}, beyond the tokenizer's {policy.num_tokens}: it does"
            " not follow logit_bias; set model.policy.vocabulary=model, or use NativeEngine"
        )


def _completions(prompts: Prompts, drawn: Sequence[Drawn], turns: Turns | None) -> Completions:
    like = prompts.token_ids[0]
    lengths = torch.tensor([len(row.ids) for row in drawn], device=like.device)
    ids = _padded([row.ids for row in drawn], like)
    mask = torch.arange(ids.shape[1], device=like.device) < lengths.unsqueeze(1)
    starts = None
    if turns is not None:
        mask = turns.turn_ids[:, : ids.shape[1]].to(like.device) >= 0
        starts = turns.context_starts[:, : ids.shape[1]].to(like.device)
    return Completions(prompts.token_ids, ids, mask, len(drawn) // len(prompts), starts)


def _padded(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return rows of numbers as ``[B, T]``, padded with 0, of a tensor's type and device."""
    tensors = [torch.tensor(row, dtype=like.dtype, device=like.device) for row in rows]
    return pad_sequence(tensors, batch_first=True)


def closed(row: Drawn, policy: PolicyModel, most: int) -> Drawn:
    """Append an end of sequence, without a log-prob, where a stop string has ended a completion.

    Args:
        row: a completion, or a turn.
        policy: whose ends of sequence there are.
        most: tokens that it can have.
    """
    if not row.ended or row.ids[-1] in policy.eos_ids or len(row.ids) == most:
        return row
    return Drawn([*row.ids, policy.stop_id], [*row.logprobs, math.nan], True)
