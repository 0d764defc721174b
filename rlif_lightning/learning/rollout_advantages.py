"""From the heads' scores to advantages, with the figures of a rollout and its rewards."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlif_lightning.learning.advantages import Advantage, reward_shares
from rlif_lightning.learning.episode_figures import episode_metrics
from rlif_lightning.learning.normalization import scored_lengths
from rlif_lightning.learning.step_advantages import step_parts
from rlif_lightning.masked import masked_max, masked_std
from rlif_lightning.metric_names import is_of_run
from rlif_lightning.processes.collectives import all_rank_max, all_rank_mean_std, all_rank_sum
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.received import kept_completions, only_scores_of


def score_rollout(
    rollout: Rollout,
    outputs: dict[str, RewardOutput],
    advantage: Advantage,
    weights: Tensor,
    loss_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Compute a rollout's advantages and its metrics (a collective).

    Args:
        rollout: P prompts with G completions each.
        outputs: of R heads; without any, every advantage is 0.
        advantage: the estimator.
        weights: ``[R]`` reward weights.
        loss_weights: ``[B, T]``, as of ``losses.aggregation_weights`` for all of the rollout; None
            = gradient norms are left out.

    Returns:
        ``[B, T]`` advantages (constant over a completion unless the estimator works on tokens), and
        the metrics ``reward/<head>/{mean,std,group_std,share,gradient_norm}``, ``policy/entropy``,
        ``rollout/{length,ended}`` and the heads' own. A head's figure whose name is another one's,
        such as a second vote's or ``time/update``, is named ``reward/<head>/<figure>``.

    Raises:
        ValueError: the estimator returned a wrong shape; names it.
    """
    metrics = _figures_of(rollout)
    if not outputs:
        return torch.zeros_like(rollout.stats.logprobs), metrics
    shape = (rollout.num_prompts, rollout.group_size)
    head_weights = weights.to(rollout.mask.device)
    weights = group_reward_weights(head_weights, list(outputs.values()))
    by_step = step_parts(rollout, outputs, advantage, weights)  # [R, B, T] or nothing
    rewards = torch.stack([output.scores.view(shape) for output in outputs.values()])
    lengths = rollout.lengths.view(shape)
    if by_step is not None:  # their scores count by step alone
        rewards = rewards.masked_fill(_has_steps(outputs, rewards.device), torch.nan)
    scored = scored_lengths(rewards, head_weights, lengths)
    parts = advantage.parts(rewards, weights, lengths).to(rewards.device)
    advantages = of_tokens(advantage.total(parts, scored), rollout, type(advantage).__name__)
    if by_step is not None:
        advantages = advantages + by_step.sum(0).float()
    shares = _shares(parts, by_step, lengths)
    for (name, output), share in zip(outputs.items(), shares, strict=True):
        metrics |= reward_metrics(name, output.scores, rollout.group_size)
        metrics[f"reward/{name}/share"] = share
    if loss_weights is not None:
        factors = 1.0 if rollout.token_weights is None else rollout.token_weights
        norms = gradient_norms(parts, loss_weights * factors, by_step)
        metrics |= {
            f"reward/{name}/gradient_norm": n for name, n in zip(outputs, norms, strict=True)
        }
    for name, output in outputs.items():
        for figure, value in output.log.items():
            taken = figure in metrics or is_of_run(figure)
            metrics[f"reward/{name}/{figure}" if taken else figure] = value
    return advantages, metrics


def _figures_of(rollout: Rollout) -> dict[str, Tensor | float]:
    """Return the figures of a rollout's completions (a collective)."""
    return {
        "policy/entropy": mean_of_tokens(rollout.stats.entropy, rollout),
        "rollout/length": mean_length(rollout),
        "rollout/ended": rollout.ended.float().mean(),
        **engine_metrics(rollout),
        **episode_metrics(rollout),
    }


def _has_steps(outputs: dict[str, RewardOutput], device: torch.device) -> Tensor:
    """Return ``[R, 1, 1]`` bool: which heads score steps."""
    stepped = [output.steps is not None for output in outputs.values()]
    return torch.tensor(stepped, device=device).view(-1, 1, 1)


def _shares(parts: Tensor, by_step: Tensor | None, lengths: Tensor) -> Tensor:
    """Return each reward's share of |A|; a completion's |A| of steps is the mean of its tokens."""
    if by_step is None:
        return reward_shares(parts)
    sizes = by_step.abs().sum(-1) / lengths.flatten().clamp(min=1)  # [R, B]
    return reward_shares(parts.abs() + sizes.view(parts.shape))


def gradient_norms(parts: Tensor, loss_weights: Tensor, by_step: Tensor | None = None) -> Tensor:
    """Compute the norm of each reward's share of the policy loss's gradient (a collective).

    The gradient is that by the log-probs of the completions' tokens at ratio 1, where no clip holds
    and KL-Cov's penalty has no slope: ``-weight_bt part_rb`` for reward r on token t of completion
    b. So the shares sum to the gradient of the whole policy loss, but for weights that an objective
    gives to tokens (STARE's, and GMPO's mean of an engine's weights), which are not in them. The
    time is O(B T). Source: the probe of arXiv 2605.22620.

    Args:
        parts: ``[R, P, G]`` from :meth:`Advantage.parts`; a normalisation over the batch, and what
            an objective makes of the advantages of some tokens, come later and are not in them.
        loss_weights: ``[B, T]`` with which token losses are summed, 0 outside the mask.
        by_step: ``[R, B, T]`` of :func:`step_parts`; None = no head scores steps.

    Returns:
        ``[R]`` float64 L2 norms over the tokens of all data ranks.
    """
    sizes = loss_weights.square().sum(1, dtype=torch.float64)  # [B]
    squares = (parts.flatten(1).square() * sizes).sum(1)
    if by_step is not None:
        squares = squares + (by_step * loss_weights).square().sum((1, 2))
    return all_rank_sum(squares).sqrt()


def mean_length(rollout: Rollout) -> Tensor:
    """Return the mean length over all completions that have tokens (a collective).

    Returns:
        A float32 scalar, tokens; NaN where heads take out every completion.
    """
    lengths = rollout.lengths
    total, count = all_rank_sum(torch.stack([lengths.sum(), (lengths > 0).sum()]))
    return total / count


def mean_of_tokens(values: Tensor, rollout: Rollout) -> Tensor:
    """Return the mean of ``[B, T]`` values over a rollout's tokens (a collective).

    Returns:
        A float64 scalar; NaN where heads take out every completion.
    """
    mean, _ = all_rank_mean_std(values, rollout.mask)
    return torch.where(all_rank_sum(rollout.mask.sum()) > 0, mean, torch.nan)


def of_tokens(advantages: Tensor, rollout: Rollout, estimator: str) -> Tensor:
    """Return ``[B, T]`` of an estimator's ``[P, G]`` or ``[B, T]``, on the rollout's device.

    Raises:
        ValueError: another shape; names the estimator.
    """
    per_completion = (rollout.num_prompts, rollout.group_size)
    per_token = tuple(rollout.mask.shape)
    if tuple(advantages.shape) not in (per_completion, per_token):
        raise ValueError(
            f"advantage {estimator} returned shape {tuple(advantages.shape)}; one per completion,"
            f" {per_completion}, or one per token, {per_token}, is needed"
        )
    advantages = advantages.to(rollout.mask.device)
    if advantages.shape == per_token:
        return advantages
    return advantages.reshape(-1, 1).expand(per_token)  # [P, G] to [B, 1] to [B, T]


def engine_metrics(rollout: Rollout) -> dict[str, Tensor | float]:
    """Measure how far the engine's log-probs are from the policy's (a collective).

    ``rollout/engine_gap`` and ``engine_gap_max``: mean and largest |difference| of a token's
    log-prob, nats; ``rollout/engine_weight``: the mean token weight that corrects for it;
    ``rollout/engine_bounded``: the share of tokens whose weight is bounded. There are no such
    figures where the engine's log-probs are the policy's own. ``rollout/staleness`` and
    ``staleness_max``, of completions, are there where an engine draws ahead.
    """
    if rollout.engine_logprobs is None:
        return {}
    gap = (rollout.engine_logprobs - rollout.stats.logprobs).abs()
    metrics: dict[str, Tensor | float] = {
        "rollout/engine_gap": mean_of_tokens(gap, rollout),
        "rollout/engine_gap_max": all_rank_max(masked_max(gap, rollout.mask)),
    }
    if rollout.token_weights is not None:
        metrics["rollout/engine_weight"] = mean_of_tokens(rollout.token_weights, rollout)
    if rollout.is_bounded is not None:
        metrics["rollout/engine_bounded"] = mean_of_tokens(rollout.is_bounded, rollout)
    if rollout.staleness is not None:
        mean, _ = all_rank_mean_std(rollout.staleness, torch.ones_like(rollout.staleness))
        metrics["rollout/staleness"] = mean
        metrics["rollout/staleness_max"] = all_rank_max(rollout.staleness.max())
    return metrics


def group_reward_weights(weights: Tensor, outputs: list[RewardOutput]) -> Tensor:
    """Return reward weights ``[R]``, or ``[R, P]`` if a head's weight differs between groups."""
    if all(output.group_weight_factor is None for output in outputs):
        return weights
    like = next(
        output.group_weight_factor for output in outputs if output.group_weight_factor is not None
    )
    factors = [
        torch.ones_like(like) if output.group_weight_factor is None else output.group_weight_factor
        for output in outputs
    ]
    return weights.unsqueeze(1) * torch.stack(factors).to(weights)  # [R, 1] * [R, P]


def reward_metrics(name: str, scores: Tensor, group_size: int) -> dict[str, Tensor]:
    """Compute ``reward/<name>/{mean,std,group_std}`` over all data ranks (a collective).

    NaN scores are left out, and ddof is 1. ``group_std`` is the mean over groups with at least two
    scores. A figure without any score is NaN: a reward that never applied is not one that was 0.
    """
    valid = ~scores.isnan()
    groups = valid.view(-1, group_size)
    spread, has_spread = masked_std(scores.view(-1, group_size), groups, -1), groups.sum(-1) > 1
    mean, std = all_rank_mean_std(scores, valid)
    group_std, _ = all_rank_mean_std(spread, has_spread)
    num_scores, num_groups = all_rank_sum(torch.stack([valid.sum(), has_spread.sum()]))
    mean, std = (torch.where(num_scores > 0, value, torch.nan) for value in (mean, std))
    group_std = torch.where(num_groups > 0, group_std, torch.nan)
    return {
        f"reward/{name}/mean": mean,
        f"reward/{name}/std": std,
        f"reward/{name}/group_std": group_std,
    }


def without_dropped(
    rollout: Rollout, outputs: dict[str, RewardOutput]
) -> tuple[Rollout, dict[str, RewardOutput]]:
    """Remove completions that a head's ``keep_mask`` drops: no token counts, no score applies."""
    keep = kept_completions(rollout, outputs)
    kept = only_scores_of(keep, outputs)
    return replace(rollout, mask=rollout.mask & keep.unsqueeze(1)), kept
