"""The formulas restated one number at a time, in plain Python, from the papers and not from the
library.

No tensor arithmetic on purpose: a wrong axis, mask or broadcast in the library cannot be repeated
here. ``None`` and NaN both stand for "does not apply". Nested lists follow the library's axis
letters (``records.py``). At the end: the small updates that several test files share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def std(values: Sequence[float], ddof: int = 1) -> float:
    if len(values) <= ddof:
        return 0.0
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - ddof))


def group_z(group: Sequence[float], eps: float = 1e-4, std_floor: float = 1e-6) -> list[float]:
    """z-scores of one reward in one group, NaN left out."""
    valid = [reward for reward in group if not math.isnan(reward)]
    spread = std(valid)
    if spread <= std_floor:
        return [0.0] * len(group)
    center = mean(valid)
    return [0.0 if math.isnan(reward) else (reward - center) / (spread + eps) for reward in group]


def gdpo(
    rewards: Tensor, weights: Tensor, batch_norm: str = "none", eps: float = 1e-4, lengths=None
) -> Tensor:
    """GDPO over ``[R, P, G]``; a batch without spread is 0."""
    num_rewards, num_prompts, group_size = rewards.shape
    total = [[0.0] * group_size for _ in range(num_prompts)]
    for r in range(num_rewards):
        for p in range(num_prompts):
            for g, z in enumerate(group_z(rewards[r, p].tolist(), eps)):
                total[p][g] += float(weights[r]) * z
    if batch_norm == "none":
        return torch.tensor(total)
    scored = [  # a reward with a weight applies to it
        (p, g)
        for p in range(num_prompts)
        for g in range(group_size)
        if any(weights[r] != 0 and not math.isnan(rewards[r, p, g]) for r in range(num_rewards))
    ]
    sample: list[float] = []
    for p, g in scored:
        sample += [total[p][g]] * (1 if batch_norm == "sample" else int(lengths[p, g]))
    center, spread = mean(sample), std(sample)
    answer = [[0.0] * group_size for _ in range(num_prompts)]
    for p, g in scored if spread > 1e-6 else ():
        answer[p][g] = (total[p][g] - center) / (spread + eps)
    return torch.tensor(answer)


def grpo(rewards: Tensor, weights: Tensor, eps: float = 1e-4) -> Tensor:
    """GRPO on the weighted sum of rewards; no NaN."""
    num_rewards, num_prompts, group_size = rewards.shape
    answer = []
    for p in range(num_prompts):
        group = [
            sum(float(weights[r]) * float(rewards[r, p, g]) for r in range(num_rewards))
            for g in range(group_size)
        ]
        answer.append(group_z(group, eps))
    return torch.tensor(answer)


def leave_one_out(group: Sequence[float]) -> list[float]:
    """RLOO of one reward in one group, NaN left out: each reward minus the mean of the others."""
    answer = []
    for g, reward in enumerate(group):
        others = [other for i, other in enumerate(group) if i != g and not math.isnan(other)]
        answer.append(0.0 if math.isnan(reward) or not others else reward - mean(others))
    return answer


def minus_mean(group: Sequence[float]) -> list[float]:
    """Dr. GRPO of one reward in one group, NaN left out."""
    center = mean([reward for reward in group if not math.isnan(reward)])
    return [0.0 if math.isnan(reward) else reward - center for reward in group]


def per_reward(rewards: Tensor, weights: Tensor, group_rule) -> Tensor:
    """``Σ_r w_r rule(group)`` for a rule that works on one reward of one group."""
    total = torch.zeros(rewards.shape[1:], dtype=torch.float64)
    for r in range(rewards.shape[0]):
        for p in range(rewards.shape[1]):
            for g, value in enumerate(group_rule(rewards[r, p].tolist())):
                total[p, g] += float(weights[r]) * value
    return total.float()


def covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> list[list[float]]:
    """``(logprob - mean)(A - mean)`` with means over the valid tokens; 0 elsewhere."""
    rows, columns = mask.shape
    valid = [(b, t) for b in range(rows) for t in range(columns) if mask[b, t]]
    logprob_mean = mean([float(logprobs[b, t]) for b, t in valid])
    advantage_mean = mean([float(advantages[b, t]) for b, t in valid])
    answer = [[0.0] * columns for _ in range(rows)]
    for b, t in valid:
        answer[b][t] = (float(logprobs[b, t]) - logprob_mean) * (
            float(advantages[b, t]) - advantage_mean
        )
    return answer


def largest_marks(values: list[list[float]], mask: Tensor, fraction: Fraction) -> Tensor:
    """The ``fraction`` largest, at least one if any is positive. Values without ties."""
    found = [
        (values[b][t], b, t)
        for b in range(mask.shape[0])
        for t in range(mask.shape[1])
        if mask[b, t]
    ]
    found.sort(reverse=True)
    count = math.floor(len(found) * fraction)
    if count == 0 and fraction > 0 and found and found[0][0] > 0:
        count = 1
    marks = torch.zeros_like(mask)
    for _, b, t in found[:count]:
        marks[b, t] = True
    return marks


def positive_marks(values: list[list[float]], mask: Tensor, fraction: Fraction) -> Tensor:
    """As :func:`largest_marks`, of positive values only: fewer than the fraction if there are not
    enough.
    """
    positive = torch.tensor([[value > 0 for value in row] for row in values]) & mask
    return largest_marks(values, mask, fraction) & positive


def held_by_clip(batch: LossInputs, low: float = 0.2, high: float = 0.2) -> Tensor:
    """Tokens whose clipped surrogate has no slope, one at a time."""
    held = torch.zeros_like(batch.mask)
    for b, t in batch.mask.nonzero().tolist():
        token = (float(x[b, t]) for x in (batch.logprobs, batch.old_logprobs, batch.advantages))
        held[b, t] = surrogate_slope(*token, low, high) == 0
    return held


def surrogate(logprob: float, old: float, advantage: float, low=0.2, high=0.2, dual=None) -> float:
    """Clipped surrogate of one token."""
    ratio = math.exp(min(max(logprob - old, -20.0), 20.0))
    gain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        gain = max(gain, dual * advantage)
    return -gain


def surrogate_slope(logprob: float, old: float, advantage: float, low=0.2, high=0.2) -> float:
    """Its derivative by ``logprob``: ``-ratio * A``, or 0 where the clip holds."""
    ratio = math.exp(logprob - old)
    held = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    return 0.0 if held else -ratio * advantage


def token_statistics(logits: Sequence[float], token: int) -> tuple[float, float, float]:
    """Log-probability, entropy and KL(uniform || p) of one distribution, from its probabilities."""
    top = max(logits)
    scores = [math.exp(z - top) for z in logits]
    norm = math.fsum(scores)
    logprobs = [z - top - math.log(norm) for z in logits]
    entropy = -math.fsum(math.exp(lp) * lp for lp in logprobs)
    uniform = 1 / len(logits)
    return (
        logprobs[token],
        entropy,
        math.fsum(uniform * (math.log(uniform) - lp) for lp in logprobs),
    )


def nucleus(logits: Sequence[float], top_k: int, top_p: float) -> set[int]:
    """Tokens that stay after top-k, then top-p, taken one by one from the most likely down.

    Logits without ties.
    """
    order = sorted(range(len(logits)), key=lambda v: -logits[v])
    if top_k:
        order = order[:top_k]
    norm = math.fsum(math.exp(logits[v]) for v in order)
    kept: set[int] = set()
    covered = 0.0
    for v in order:
        if top_p < 1 and covered >= top_p:
            break
        kept.add(v)
        covered += math.exp(logits[v]) / norm
    return kept


def update(rows: int = 6, columns: int = 8, seed: int = 0) -> LossInputs:
    """A random optimiser update; advantages constant over a completion, ragged lengths, no ties."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, columns, generator=generator)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    return LossInputs(
        logprobs=old + 0.4 * torch.randn(rows, columns, generator=generator),
        old_logprobs=old,
        advantages=torch.randn(rows, 1, generator=generator).expand(rows, columns),
        mask=torch.arange(columns) < lengths,
        completion_numbers=torch.arange(rows),
        entropy=torch.rand(rows, columns, generator=generator),
        ref_logprobs=old + 0.1 * torch.randn(rows, columns, generator=generator),
    )


def rows_in(batch: LossInputs, order: list[int]) -> LossInputs:
    """The update with its rows in another order."""
    return LossInputs(
        **{name: value[order] for name, value in vars(batch).items() if value is not None}
    )


def golden() -> LossInputs:
    """KL-Cov's worked example: covariances .625, 1.375, 1.125, .375."""
    logprobs = torch.tensor([[-1.0, -3.0, -0.5, -2.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    return LossInputs(
        logprobs, logprobs.clone(), torch.tensor([[1.0, -1.0, 1.0, -1.0]]), mask, torch.tensor([0])
    )


def loss_and_gradient(objective, batch: LossInputs, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Token losses ``[B, T]``, and the derivative of their sum over valid tokens by each
    log-prob.
    """
    leaf = batch.logprobs.clone().requires_grad_()
    loss = objective.token_loss(replace(batch, logprobs=leaf), marks)
    return loss.detach(), torch.autograd.grad(loss[batch.mask].sum(), leaf)[0]
