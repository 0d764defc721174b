"""Rollouts with the scores of their completions: drawn at once, or assembled of several draws."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlif_lightning.judges.asking import cost_of
from rlif_lightning.masked import extents
from rlif_lightning.records import Prompts, RewardOutput, Rollout
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rewards.step_scores import StepScores
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with its rewards and what it cost.

    Attributes:
        rollout: B completions of P prompts.
        outputs: of the reward heads.
        num_tokens: scalar, the tokens that this data rank drew for it, discarded ones too.
        seconds: wall time of sampling.
        figures: to log.
        draws: that it was assembled of.
    """

    rollout: Rollout
    outputs: dict[str, RewardOutput]
    num_tokens: Tensor
    seconds: float
    figures: dict[str, Tensor | float] = field(default_factory=dict)
    draws: Sequence[ScoredRollout] = ()

    @property
    def every_group(self) -> tuple[Rollout, dict[str, RewardOutput]]:
        """The rollout and outputs of all groups that were drawn, also of those left out."""
        if len(self.draws) < 2:
            return self.rollout, self.outputs
        groups = [
            (number, group)
            for number, draw in enumerate(self.draws)
            for group in range(draw.rollout.num_prompts)
        ]
        return assembled(self.draws, groups)


@dataclass(frozen=True)
class RolloutSource:
    """What draws and scores completions.

    Attributes:
        engine: draws them.
        rewards: score them.
        sampling: how they are drawn.
        group_size: G.
    """

    engine: RolloutEngine
    rewards: RewardSet
    sampling: Sampling
    group_size: int

    def draw(self, prompts: Prompts, rollout_number: int) -> ScoredRollout:
        """Draw a group for each prompt and score it (a collective)."""
        started = time.perf_counter()
        rollout = self.engine.generate(prompts, self.group_size, self.sampling, rollout_number)
        seconds, num_tokens = time.perf_counter() - started, rollout.lengths.sum()
        return ScoredRollout(rollout, self.rewards(rollout), num_tokens, seconds)


def assembled(
    draws: Sequence[ScoredRollout], chosen: Sequence[tuple[int, int]]
) -> tuple[Rollout, dict[str, RewardOutput]]:
    """Assemble a rollout of groups of several draws, as if they had been drawn together.

    Args:
        draws: with equal group sizes and heads.
        chosen: which draw, and which group of it, for each group of the result.

    Returns:
        The rollout, padded to its longest completion, and its outputs. What heads log is that of
        the first draw.
    """
    rollouts = [draw.rollout for draw in draws]
    counts = [rollout.num_prompts for rollout in rollouts]
    groups = [sum(counts[:draw]) + group for draw, group in chosen]
    mask = _rows(rollouts, [rollout.mask for rollout in rollouts], groups)
    longest = int(extents(mask).max())

    def of(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        found = _rows(rollouts, known, groups)
        return found[:, :longest].contiguous() if found.ndim == 2 else found

    def given(values: Sequence[Tensor]) -> Tensor:
        found = of(values)
        assert found is not None
        return found

    size, first = rollouts[0].group_size, rollouts[0]
    rows = [group * size + number for group in groups for number in range(size)]
    texts = [text for rollout in rollouts for text in rollout.texts]
    stats = {
        name: given([getattr(rollout.stats, name) for rollout in rollouts])
        for name in vars(first.stats)
    }
    rollout = Rollout(
        _prompts([rollout.prompts for rollout in rollouts], groups),
        given([rollout.completion_ids for rollout in rollouts]),
        mask[:, :longest].contiguous(),
        replace(first.stats, **stats),
        [texts[row] for row in rows],
        _rows(rollouts, [rollout.ended for rollout in rollouts], groups),
        size,
        of([rollout.engine_logprobs for rollout in rollouts]),
        of([rollout.token_weights for rollout in rollouts]),
        of([rollout.is_bounded for rollout in rollouts]),
        of([rollout.staleness for rollout in rollouts]),
    )
    rollout = _with_turns(rollout, rollouts, rows)
    return rollout, {name: _output(draws, name, groups) for name in draws[0].outputs}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its parts into evaluation mode, and each back into its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def with_cost_of(
    draws: Sequence[ScoredRollout], outputs: Mapping[str, RewardOutput]
) -> dict[str, RewardOutput]:
    """Return outputs that log what judges were asked in all draws, whoever needed them."""
    return {
        name: replace(
            output,
            log={**output.log, **cost_of([draw.outputs[name].log for draw in draws])},
        )
        for name, output in outputs.items()
    }


def _with_turns(whole: Rollout, rollouts: Sequence[Rollout], rows: Sequence[int]) -> Rollout:
    """Return an assembled rollout with the turns and episodes of its rows, if there are any."""
    known = [rollout.turn_ids for rollout in rollouts if rollout.turn_ids is not None]
    if len(known) < len(rollouts):
        return whole
    width = whole.mask.shape[1]
    turns = [pad(each, (0, width), value=-1)[:, :width] for each in known]
    starts = [each.context_starts for each in rollouts if each.context_starts is not None]
    starts = [pad(each, (0, width))[:, :width] for each in starts]
    episodes = [episode for rollout in rollouts for episode in rollout.episodes or ()]
    index = torch.tensor(rows, device=whole.mask.device)
    return replace(
        whole,
        turn_ids=torch.cat(turns)[index],
        context_starts=torch.cat(starts)[index] if starts else None,
        episodes=[episodes[row] for row in rows],
    )


def _rows(rollouts: Sequence[Rollout], values: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Return the rows of some groups of all draws together; ``[B_i, T_i]`` or ``[B_i]`` each."""
    size = rollouts[0].group_size
    if values[0].ndim == 2:
        width = max(value.shape[1] for value in values)
        values = [pad(value, (0, width - value.shape[1])) for value in values]
    rows = [group * size + number for group in groups for number in range(size)]
    return torch.cat(list(values))[torch.tensor(rows, device=values[0].device)]


def _prompts(parts: Sequence[Prompts], groups: Sequence[int]) -> Prompts:
    token_ids = [ids for part in parts for ids in part.token_ids]
    texts = [text for part in parts for text in part.texts]
    columns = {
        name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns
    }
    index = torch.cat([part.index for part in parts])
    has_chat = all(part.messages is not None for part in parts)
    messages = [each for part in parts for each in part.messages or ()] if has_chat else None
    return Prompts(
        [token_ids[group] for group in groups],
        [texts[group] for group in groups],
        {name: [values[group] for group in groups] for name, values in columns.items()},
        index[torch.tensor(groups, device=index.device)],
        None if messages is None else [messages[group] for group in groups],
        parts[0].environment,
    )


def _output(draws: Sequence[ScoredRollout], name: str, groups: Sequence[int]) -> RewardOutput:
    """Return one head's output for some groups of all draws together."""
    rollouts, parts = [draw.rollout for draw in draws], [draw.outputs[name] for draw in draws]
    keep, factors, answers, size = None, None, None, rollouts[0].group_size
    if any(part.keep_mask is not None for part in parts):
        masks = [
            torch.ones_like(rollout.ended) if part.keep_mask is None else part.keep_mask
            for rollout, part in zip(rollouts, parts, strict=True)
        ]
        keep = _rows(rollouts, masks, groups)
    if any(part.group_weight_factor is not None for part in parts):
        each = [
            part.scores.new_ones(rollout.num_prompts, dtype=torch.float64)
            if part.group_weight_factor is None
            else part.group_weight_factor
            for rollout, part in zip(rollouts, parts, strict=True)
        ]
        factors = torch.cat(each)[torch.tensor(groups, device=each[0].device)]
    chosen = [group * size + number for group in groups for number in range(size)]
    if all(part.answers is not None for part in parts):
        every = [answer for part in parts for answer in part.answers or ()]
        answers = [every[row] for row in chosen]
    scores = _rows(rollouts, [part.scores for part in parts], groups)
    steps = _steps(rollouts, parts, groups)
    columns = {}
    for column in set(parts[0].columns).intersection(*(part.columns for part in parts)):
        values = [value for part in parts for value in part.columns[column]]
        columns[column] = [values[row] for row in chosen]
    return RewardOutput(scores, keep, parts[0].log, factors, answers, steps, columns)


def _steps(
    rollouts: Sequence[Rollout], parts: Sequence[RewardOutput], groups: Sequence[int]
) -> StepScores | None:
    """Return the steps of some groups of all draws together."""
    steps = [part.steps for part in parts if part.steps is not None]
    if len(steps) < len(parts):
        return None
    # Padding is 0, and no score is NaN.
    valid = _rows(rollouts, [~each.scores.isnan() for each in steps], groups)
    scores = _rows(rollouts, [each.scores for each in steps], groups)
    ends = _rows(rollouts, [each.ends for each in steps], groups)
    return StepScores(ends, scores.masked_fill(~valid, torch.nan))
