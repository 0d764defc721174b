"""Dynamic sampling: groups whose scores are all equal are drawn again from other problems.

DAPO, https://arxiv.org/abs/2503.14476, section 3.2; docs/dynamic-sampling.md says what is ours.
Each place of a rollout has its own sequence of further problems, whatever other places find. With
2 data ranks of 2 prompts (place = 2 * prompt + data rank), 3 draws and 7 training problems:

    batch                problems 4 1 0 6 at places 0 1 2 3
    order of the others  3 5 2, from (seed, rollout number)
    no signal            places 1 and 2
    second draw          place 1 gets problem 5, place 2 problem 2; it has signal and stays
    third draw           place 1 would get number 4 + 1 of the order: there is none, it stays empty
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.judges.asking import asking_nothing
from rlif_lightning.learning.rollout_advantages import mean_of_tokens
from rlif_lightning.learning.scored_rollouts import (
    RolloutSource,
    ScoredRollout,
    assembled,
    evaluating,
    with_cost_of,
)
from rlif_lightning.masked import MIN_SPREAD, masked_std, masked_sum
from rlif_lightning.processes.collectives import all_rank_objects, all_rank_sum
from rlif_lightning.processes.ranks import data_rank, num_data_ranks
from rlif_lightning.records import Prompts, RewardOutput
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rewards.controls import Length
from rlif_lightning.rewards.held_head import heads_behind
from rlif_lightning.rewards.internal import MeanLogprob, NegativeEntropy, SelfCertainty
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.sampling import purpose_seeds
from rlif_lightning.setting_types import check_types

# Heads whose scores differ in practically every group.
ALWAYS_DIFFERENT = (MeanLogprob, NegativeEntropy, SelfCertainty, Length)


@dataclass(frozen=True)
class DynamicSampling:
    """Draws groups without signal again, from other problems, and skips what stays without.

    A group has signal if the scores of a deciding head differ in it: their standard deviation is
    above 1e-6. Completions that a head drops, and scores that do not apply, do not count.

    Args:
        heads: names of the reward heads whose scores decide; null = every head whose weight is not
            0. A named head may have weight 0.
        max_draws: how many groups each place of the batch draws at most, each of another problem; 1
            = groups without signal are skipped only. More than 1 needs PromptData.

    Raises:
        ValueError: a number out of range, or no head.
    """

    heads: Sequence[str] | None = None
    max_draws: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_draws < 1:
            need = "must be at least 1 (1 = groups without signal are skipped only)"
            raise ValueError(f"dynamic_sampling.max_draws={self.max_draws} {need}")
        if self.heads is not None and not self.heads:
            raise ValueError(
                "dynamic_sampling.heads=[] must name at least one reward, or be null for every"
                " reward whose weight is not 0"
            )

    def deciding(self, rewards: RewardSet) -> list[str]:
        """Return the names of the heads whose scores decide."""
        if self.heads is not None:
            return list(self.heads)
        return [name for name, reward in rewards.settings.items() if reward.weight]

    def check(self, rewards: RewardSet, group_size: int, data: PromptData | None) -> None:
        """Refuse a run in which this could do nothing, or would empty every rollout.

        Raises:
            ValueError: names the setting and the remedy.
        """
        if group_size == 1:
            raise ValueError(
                "model.dynamic_sampling needs groups: with data.group_size=1 no group has"
                " signal; raise it, or set model.dynamic_sampling=null"
            )
        deciding = self.deciding(rewards)
        if unknown := sorted(set(deciding) - set(rewards.names)):
            raise ValueError(
                f"model.dynamic_sampling.heads={list(deciding)} names {unknown[0]!r}; known heads:"
                f" {sorted(rewards.names)}"
            )
        self._check_heads({name: rewards.settings[name] for name in deciding})
        if self.max_draws > 1:
            self._check_data(data)

    def _check_heads(self, heads: Mapping[str, WeightedReward]) -> None:
        for name, reward in heads.items():
            held = heads_behind(reward.head)
            if reward.gate is None and any(isinstance(each, ALWAYS_DIFFERENT) for each in held):
                raise ValueError(
                    f"model.dynamic_sampling.heads={self.heads}: reward {name!r}"
                    f" ({type(reward.head).__name__}) tells completions of practically every group"
                    " apart, so every group would have signal; name the rewards that decide, such"
                    " as a vote or gold answers, without it"
                )
        if not any(reward.head.gives_scores for reward in heads.values()):
            raise ValueError(
                f"model.dynamic_sampling.heads={self.heads}: {sorted(heads)} scores nothing, so no"
                " group would have signal; name a reward with scores"
            )

    def _check_data(self, data: PromptData | None) -> None:
        if data is None:
            raise ValueError(
                f"model.dynamic_sampling.max_draws={self.max_draws} draws further problems, which"
                " only PromptData gives; use PromptData, or set max_draws=1 to skip groups without"
                " signal"
            )
        problems = data.split("train")
        if problems is not None and len(problems) <= data.prompts_per_rollout:
            raise ValueError(
                f"model.dynamic_sampling.max_draws={self.max_draws} has no further problem to draw:"
                f" the {len(problems)} training problems are one rollout of"
                f" data.prompts_per_rollout={data.prompts_per_rollout}; lower that, or set"
                " max_draws=1"
            )


def groups_with_signal(
    outputs: Mapping[str, RewardOutput], heads: Collection[str], group_size: int
) -> Tensor:
    """Return ``[P]`` bool: the groups in which the scores of any of these heads differ."""
    found = torch.zeros_like(next(iter(outputs.values())).scores[::group_size], dtype=torch.bool)
    for name in heads:
        scores = outputs[name].scores.view(-1, group_size).double()
        found |= masked_std(scores, ~scores.isnan(), -1) > MIN_SPREAD
    return found


def further_problems(
    rows: np.ndarray, batch: Collection[int], seed: int, rollout_number: int
) -> np.ndarray:
    """Return the positions in ``rows`` of all problems that are not in the batch, shuffled.

    Args:
        rows: each training problem's number in its data set.
        batch: the numbers of the problems of all data ranks.
        seed: of the run.
        rollout_number: it seeds the order together with ``seed``.
    """
    order = np.random.default_rng(purpose_seeds("redraw", seed, rollout_number)).permutation(
        len(rows)
    )
    return order[~np.isin(rows[order], list(batch))]


def further_problem(
    order: Sequence[int] | np.ndarray, draw: int, place: int, places: int
) -> int | None:
    """Return the position of a place's problem in its draw 1, 2, ...; None where none is left."""
    number = (draw - 1) * places + place
    return int(order[number]) if number < len(order) else None


@dataclass(frozen=True)
class DynamicDraws:
    """Draws the rollouts of a run with dynamic sampling.

    Attributes:
        settings: what decides, and how often is drawn.
        source: draws and scores.
        problems: the training problems; None where ``max_draws`` is 1.
        seed: of the order of further problems.
    """

    settings: DynamicSampling
    source: RolloutSource
    problems: EncodedSplit | None
    seed: int

    def draw(self, prompts: Prompts, rollout_number: int) -> ScoredRollout:
        """Draw groups until each place has signal or ``max_draws`` is reached (a collective).

        A group that stays without signal keeps its place; ``keep_mask`` takes it out.
        """
        first = self.source.draw(prompts, rollout_number)
        had_signal = self._signal(first)
        draws, chosen, seconds = [first], [(0, group) for group in range(len(prompts))], 0.0
        made = [first]
        signal = list(had_signal)
        for positions in self._further(prompts, rollout_number, signal):
            draw = self._draw_again(list(positions.values()), prompts, rollout_number)
            seconds += draw.seconds
            made.append(draw)
            if not positions:
                continue  # the other data ranks' draw
            draws.append(draw)
            found = zip(positions, self._signal(draw), strict=True)
            for group, (place, has_signal) in enumerate(found):
                if has_signal:
                    signal[place], chosen[place] = True, (len(draws) - 1, group)
        whole = self._whole(draws, chosen, signal)
        figures = self._figures(draws, whole, had_signal, signal)
        outputs = with_cost_of(made, whole.outputs)
        return replace(whole, outputs=outputs, seconds=first.seconds + seconds, figures=figures)

    def _signal(self, draw: ScoredRollout) -> list[bool]:
        """Return which groups of a draw have signal."""
        heads = self.settings.deciding(self.source.rewards)
        return groups_with_signal(draw.outputs, heads, self.source.group_size).tolist()

    def _further(
        self, prompts: Prompts, rollout_number: int, signal: Sequence[bool]
    ) -> Iterator[dict[int, int]]:
        """Yield group -> position of its next problem, for each further draw (a collective).

        Every data rank gets as many draws, in some of which it may have no group. ``signal`` may
        change between two draws.
        """
        device = prompts.index.device

        def on_all_ranks(number: int) -> int:
            return int(all_rank_sum(torch.tensor(number, device=device)))

        if self.settings.max_draws == 1 or not on_all_ranks(signal.count(False)):
            return
        assert self.problems is not None
        batch = [row for rows in all_rank_objects(prompts.index.tolist()) for row in rows]
        order = further_problems(self.problems.rows, batch, self.seed, rollout_number)
        ranks, rank = num_data_ranks(), data_rank()
        for draw in range(1, self.settings.max_draws):
            found = {
                group: further_problem(order, draw, group * ranks + rank, len(batch))
                for group, has_signal in enumerate(signal)
                if not has_signal
            }
            positions = {group: place for group, place in found.items() if place is not None}
            if not on_all_ranks(len(positions)):
                return
            yield positions

    def _draw_again(
        self, positions: list[int], prompts: Prompts, rollout_number: int
    ) -> ScoredRollout:
        """Draw groups of further problems (a collective).

        A data rank without one draws single tokens, and asks no judge: engines and heads have
        collectives of their own. The heads are in evaluation mode, in which they count nothing, so
        what they remember is of as many draws in each rollout, on any number of data ranks.
        """
        assert self.problems is not None
        source, device, is_idle = self.source, prompts.index.device, not positions
        if is_idle:
            short = replace(source.sampling, max_new_tokens=1, min_new_tokens=0)
            source, positions = replace(source, sampling=short), [0]
        with evaluating(source.rewards), asking_nothing(is_idle):
            return source.draw(self.problems.batch(positions).to(device), rollout_number)

    def _whole(
        self,
        draws: Sequence[ScoredRollout],
        chosen: Sequence[tuple[int, int]],
        signal: Sequence[bool],
    ) -> ScoredRollout:
        """Return the rollout of the chosen groups, without those that have no signal."""
        rollout, outputs = draws[0].rollout, draws[0].outputs
        if len(draws) > 1:
            rollout, outputs = assembled(draws, chosen)
        if not all(signal):
            stays = torch.tensor(signal, device=rollout.mask.device)
            stays = stays.repeat_interleave(rollout.group_size)  # [P] to [B]
            outputs = {
                name: replace(
                    output,
                    keep_mask=stays if output.keep_mask is None else stays & output.keep_mask,
                )
                for name, output in outputs.items()
            }
        num_tokens = torch.stack([draw.num_tokens for draw in draws]).sum()
        return ScoredRollout(rollout, outputs, num_tokens, 0.0, draws=draws)

    def _figures(
        self,
        draws: Sequence[ScoredRollout],
        whole: ScoredRollout,
        had_signal: Sequence[bool],
        signal: Sequence[bool],
    ) -> dict[str, Tensor | float]:
        """Return the figures of a rollout's draws over all data ranks (a collective)."""
        lengths = whole.rollout.lengths.view(-1, self.source.group_size).sum(-1)  # [P]
        kept = lengths[torch.tensor(signal, device=lengths.device)].sum()
        further = sum(draw.rollout.num_prompts for draw in draws[1:])
        counts = [len(signal), sum(had_signal), further, signal.count(False)]
        sums = torch.stack([*torch.tensor(counts).to(kept), whole.num_tokens - kept])
        places, first, more, empty, discarded = all_rank_sum(sums).double()
        drawn, outputs = draws[0].rollout, draws[0].outputs
        figures: dict[str, Tensor | float] = {
            "dynamic/signal": first / places,
            "dynamic/extra_groups": more,
            "dynamic/empty_places": empty,
            "dynamic/discarded_tokens": discarded,
            "dynamic/first_entropy": mean_of_tokens(drawn.stats.entropy, drawn),
        }
        scores = torch.stack([output.scores.double() for output in outputs.values()])  # [R, B]
        valid = ~scores.isnan()
        totals, counts = all_rank_sum(torch.stack([masked_sum(scores, valid, -1), valid.sum(-1)]))
        means = totals / counts  # [R]; NaN without any score
        return figures | {f"reward/{n}/first_mean": m for n, m in zip(outputs, means, strict=True)}
