"""``Rubric``: one reward made of many criteria, weighted by what still teaches.

What can be judged: ``criteria.py``. The arithmetic: ``rubric_weights.py``. docs/related/pow3r.md
says what is published and what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable, Visit
from rlif_lightning.judges.base import RunModels
from rlif_lightning.processes.collectives import all_rank_sum, is_collectives_error
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead, seen_by
from rlif_lightning.rewards.criteria import Criterion, WeightedCriterion
from rlif_lightning.rewards.held_head import together
from rlif_lightning.rewards.rubric_weights import (
    diva_weights,
    kept_criteria,
    next_factors,
    num_dropped,
    rubric_scores,
)

WEIGHTINGS = ("static", "category", "pow3r", "diva")
OF_POW3R = {"strength": 0.5, "rate": 0.5, "bounds": (0.67, 1.5)}  # the defaults


class Rubric(RewardHead):
    """Scores a completion by the weighted share of a rubric's criteria that hold.

    Outside of training rollouts, as in a prediction, weights are the criteria's own and nothing is
    dropped. A completion without a verdict has no score (NaN). Logs ``rubric/...``,
    ``criterion/<name>``, the share of completions for which a criterion holds, and what the heads
    of criteria log.

    Args:
        criteria: name -> criterion with its weight and category.
        weighting: static | category | pow3r | diva. static: the criteria's weights. category: those
            inside each category, whose mean counts. pow3r: as category, times factors that a
            problem's previous visit has left (arXiv 2605.20164). diva: the variance of each
            criterion inside the group, without weights and categories (arXiv 2609.35646).
        strength: of pow3r, 0 to 1: how far factors follow the spread of verdicts; 0 = not at all.
        rate: of pow3r, above 0 to 1: how far one visit moves them (ours: 0.5; 1 = all the way).
        bounds: of pow3r: lowest and highest factor.
        dropout: share of the criteria that each group leaves out, another one in each rollout; at
            least 3 and the required ones stay (Rubric Dropout: 0.3 to 0.5). 0 = off.

    Raises:
        ValueError: an unknown name, a number out of range, or a setting without an effect.
    """

    def __init__(
        self,
        criteria: dict[str, WeightedCriterion],
        weighting: str = "pow3r",
        strength: float = 0.5,
        rate: float = 0.5,
        bounds: tuple[float, float] = (0.67, 1.5),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.weighting, self.strength, self.rate = weighting, strength, rate
        self.bounds, self.dropout = (bounds[0], bounds[1]), dropout
        _check_criteria(criteria)
        self.settings = dict(criteria)
        self._check_settings()
        self.criteria = nn.ModuleList([each.criterion for each in criteria.values()])
        self.needs_gold = any(each.criterion.needs_gold for each in criteria.values())
        self.columns = _columns(criteria, "columns")
        self.gold_columns = _columns(criteria, "gold_columns")
        weights = [abs(each.weight) for each in criteria.values()]
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.required = [each.required for each in criteria.values()]
        self.table: PromptTable | None = None

    @property
    def label_free_columns(self) -> tuple[str, ...]:
        """The columns of criteria without ``needs_gold``, whatever the others read."""
        free = {name: it for name, it in self.settings.items() if not it.criterion.needs_gold}
        return _columns(free, "columns")

    def _check_settings(self) -> None:
        size = len(self.settings)
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"weighting={self.weighting!r} is unknown; use one of {', '.join(WEIGHTINGS)}"
            )
        low, high = self.bounds
        if not (0 <= self.strength <= 1 and 0 < self.rate <= 1 and 0 < low <= 1 <= high < math.inf):
            raise ValueError(
                f"strength={self.strength}, rate={self.rate}, bounds={self.bounds}: need 0 <="
                " strength <= 1, 0 < rate <= 1 and 0 < lowest <= 1 <= highest factor"
            )
        given = {name: getattr(self, name) for name in OF_POW3R}
        if self.weighting != "pow3r" and given != OF_POW3R:
            raise ValueError(
                f"{given} has no effect with weighting={self.weighting!r}; leave it out, or set"
                " weighting=pow3r"
            )
        if self.weighting in ("pow3r", "diva") and size < 2:
            raise ValueError(
                f"weighting={self.weighting!r} weighs criteria against each other, and there is"
                f" {size}; add one, or set weighting=static"
            )
        required = sum(each.required for each in self.settings.values())
        if not 0 <= self.dropout < 1 or (
            self.dropout and not num_dropped(self.dropout, size, required)
        ):
            raise ValueError(
                f"dropout={self.dropout} leaves out none of {size} criteria, {required} of them"
                " required (3 always stay); give a larger share below 1, or 0"
            )

    def use_table(self, table: PromptTable, name: str) -> None:
        """Ask for the factors of each problem: an epoch, those in it, and those after it."""
        self.table = table
        for criterion, each in self.settings.items():
            each.criterion.use_table(table, f"{name}/{criterion}")
        if self.weighting == "pow3r":
            owner = f"Rubric ({', '.join(self.settings)})"
            table.column(f"{name}/factors", owner, 1 + 2 * len(self.settings))
            self.column = f"{name}/factors"

    def bind(self, models: RunModels) -> None:
        for each in self.settings.values():
            each.criterion.bind(models)

    def start(self, rollout: Rollout) -> None:
        for each in self.settings.values():
            each.criterion.start(seen_by(each.criterion, rollout))

    @property
    def waits(self) -> bool:
        return any(each.criterion.waits for each in self.settings.values())

    def abandon(self) -> None:
        for each in self.settings.values():
            each.criterion.abandon()

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems that a criterion could not judge, and groups without a spread."""
        if group_size == 1 and self.weighting in ("pow3r", "diva"):
            raise ValueError(
                f"weighting={self.weighting!r} needs groups: the verdicts of data.group_size=1 have"
                " no spread; raise it, or set weighting=static"
            )
        for each in self.settings.values():
            seen = each.criterion
            seen.check(problems if seen.needs_gold else problems.only(seen.columns), group_size)

    def check_visits(self, most: float) -> None:
        """Refuse POW3R in a run that visits each problem once: it would be its own baseline."""
        if self.weighting == "pow3r" and most <= 1:
            raise ValueError(
                "weighting='pow3r' weighs by the previous visit of a problem, and this run visits"
                " each problem once: it would equal weighting=category; train on the data for 2"
                " epochs or more (trainer.max_epochs), or set weighting=diva, which needs one"
            )
        for each in self.settings.values():
            each.criterion.check_visits(most)

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Let every criterion check its column of gold answers."""
        known = list(values)
        found = [
            each.criterion.check_gold(column, known, where)
            for each in self.settings.values()
            if column in each.criterion.gold_columns
        ]
        return "; ".join(text for text in found if text is not None) or None

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions in [0, 1], float32 (a collective)."""
        shape = (rollout.num_prompts, rollout.group_size, len(self.settings))
        device = rollout.mask.device
        flat, held = self._judged(rollout)
        verdicts = flat.view(shape)
        weights, seen = self.weights.expand(shape[0], -1), verdicts
        figures: dict[str, float] = {}
        if self.table is not None and (visit := self.table.visit) is not None:
            rows = rollout.prompts.index.tolist()
            if self.weighting == "diva":
                weights = diva_weights(verdicts)
            elif self.weighting == "pow3r":
                factors = self._factors(rows, verdicts, visit)
                weights = weights * factors
                figures = _spread_of(factors.to(device))
            if self.dropout:
                kept = kept_criteria(rows, visit.rollout_number, self.required, self.dropout)
                seen = verdicts.masked_fill(~kept.unsqueeze(1), torch.nan)
        scores = rubric_scores(seen, weights, self.categories)
        logged, columns = together(held)
        log = logged | self._log(verdicts, device) | figures
        return RewardOutput(scores.flatten().float().to(device), log=log, columns=columns)

    @property
    def categories(self) -> Tensor:
        """``[C, K]`` bool: which criteria are in which category, as the weighting has them."""
        names = [each.category for each in self.settings.values()]
        if self.weighting in ("static", "diva"):
            names = [""] * len(names)
        return torch.tensor([[name == each for name in names] for each in dict.fromkeys(names)])

    def verdicts(self, rollout: Rollout) -> Tensor:
        """Return ``[B, K]`` float64 on the CPU: 1 = as wished, 0 = not, NaN = not judged.

        Raises:
            RuntimeError: a criterion raised, or returned something else; names it.
        """
        return self._judged(rollout)[0]

    def _judged(self, rollout: Rollout) -> tuple[Tensor, dict[str, RewardOutput]]:
        """Return the verdicts, and the outputs of criteria that are made of a head's."""
        columns, held = [], {}
        for name, each in self.settings.items():
            try:
                found, output = _judged(each.criterion, rollout)
            except Exception as error:
                if is_collectives_error(error):
                    raise  # another process was lost; no criterion is at fault
                raise RuntimeError(
                    f"criterion {name!r} ({type(each.criterion).__name__}) raised"
                    f" {type(error).__name__}: {error}"
                ) from error
            columns.append(found if each.weight > 0 else 1 - found)
            held |= {} if output is None else {name: output}
        return torch.stack(columns, 1), held

    def _factors(self, rows: list[int], verdicts: Tensor, visit: Visit) -> Tensor:
        """Return the factors in force, ``[P, K]``, and remember those that follow the visit.

        They are in force from the next epoch on. A group that is drawn again remembers nothing.
        """
        assert self.table is not None
        column, size = self.table.columns[self.column], len(self.settings)
        known = column.numbers(rows, [-1.0] + [1.0] * (2 * size))
        epoch, now, later = known.split([1, size, size], 1)
        factors = torch.where(epoch == visit.epoch, now, later)
        if self.training:
            settings = self.strength, self.rate, self.bounds
            after = next_factors(factors, verdicts, self.weights, self.categories, settings)
            for row, left, right in zip(rows, factors.tolist(), after.tolist(), strict=True):
                column.put(row, (visit.epoch, *left, *right))
        return factors

    def _log(self, verdicts: Tensor, device: torch.device) -> dict[str, float]:
        """Return the figures of a verdict matrix over all data ranks (a collective)."""
        size = len(self.settings)
        valid, held = ~verdicts.isnan(), verdicts.nan_to_num(0.0)
        least = verdicts.nan_to_num(torch.inf).amin(1)  # [P, K]
        most = verdicts.nan_to_num(-torch.inf).amax(1)
        needed = torch.tensor(self.required) if any(self.required) else torch.ones(size).bool()
        static = rubric_scores(verdicts, self.weights.expand(len(verdicts), -1), self.categories)
        scored = ~static.isnan()
        sums = [
            (least == 1).sum(), (most == 0).sum(), torch.isfinite(least).sum(),
            (valid & (held == 1) | ~needed).all(-1).sum(), torch.tensor(scored.numel()),
            static[scored].sum(), scored.sum(), (~valid).sum(), torch.tensor(valid.numel()),
        ]  # fmt: skip
        each = torch.cat([held.sum((0, 1)), valid.sum((0, 1)).double()])
        sums = torch.cat([torch.stack([value.double() for value in sums]), each])
        total = all_rank_sum(sums.to(device)).cpu()
        above, below = total[[0, 1, 3, 5, 7]], total[[2, 2, 4, 6, 8]]
        names = ("saturated", "unreachable", "strict", "static", "unjudged")
        figures = {f"rubric/{n}": v for n, v in zip(names, (above / below).tolist(), strict=True)}
        rates = (total[9 : 9 + size] / total[9 + size :]).tolist()
        return figures | {f"criterion/{n}": v for n, v in zip(self.settings, rates, strict=True)}


def _check_criteria(criteria: Mapping[str, WeightedCriterion]) -> None:
    if not criteria:
        raise ValueError("criteria={}: a rubric needs at least one criterion")
    for name in criteria:
        if not name.isidentifier():
            raise ValueError(
                f"criterion name {name!r} must be a plain identifier (letters, digits, _)"
            )


def _columns(criteria: Mapping[str, WeightedCriterion], which: str) -> tuple[str, ...]:
    found = [name for each in criteria.values() for name in getattr(each.criterion, which)]
    return tuple(dict.fromkeys(found))


def _judged(criterion: Criterion, rollout: Rollout) -> tuple[Tensor, RewardOutput | None]:
    """Return a criterion's verdicts, checked, ``[B]`` float64 on the CPU, and its head's output."""
    found, output = criterion.judged(seen_by(criterion, rollout))
    if not isinstance(found, Tensor):
        raise TypeError(f"verdicts are of type {type(found).__name__}; a tensor is needed")
    found = found.detach().double().cpu()
    if found.shape != (len(rollout.texts),):
        raise ValueError(f"verdicts have shape {tuple(found.shape)}, not ({len(rollout.texts)},)")
    if not ((found >= 0) & (found <= 1) | found.isnan()).all():
        raise ValueError("verdicts must lie in [0, 1], or be NaN")
    return found, output


def _spread_of(factors: Tensor) -> dict[str, float]:
    """Return mean and standard deviation of a rollout's factors (a collective)."""
    sums = torch.stack([factors.sum(), factors.square().sum(), torch.ones_like(factors).sum()])
    total, squares, count = all_rank_sum(sums).tolist()
    mean = total / count
    return {
        "rubric/factor_mean": mean,
        "rubric/factor_std": max(squares / count - mean * mean, 0.0) ** 0.5,
    }
