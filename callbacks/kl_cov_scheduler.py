"""KLCovScheduler: KL-Cov's weight and fraction, by rollout or in a closed loop on entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lightning.pytorch import Trainer

from callbacks.detectors import check_known
from callbacks.events import record_event
from callbacks.objective_values import SetsObjective
from rlif_lightning.data.described import Described
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.module import RLIFModule
from rlif_lightning.setting_types import check_types

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """How one setting moves over rollouts: through given points, or in a closed loop on entropy.

    With neither it stays at ``start``. In the closed loop, after a rollout whose mean entropy H is
    below ``target[0]``, the value is multiplied by ``exp(gain * (target[0] - H) / target[0])``,
    above ``target[1]`` by ``exp(-gain * (H - target[1]) / target[1])``; inside the band it stays.
    It is clamped to ``bounds``.

    Args:
        start: value of the first rollout.
        points: [rollout, value] pairs with rising rollouts; the value is ``start`` at rollout 0,
            passes through them, and stays at the last. ``[[100, 0.0]]`` falls to 0 in 100 rollouts.
        shape: linear | cosine: of the way from one point to the next.
        target: band of mean token entropy in nats, low and high, instead of points.
        gain: factor of a relative deviation from the band; 0.1 if not given.
        bounds: lowest and highest value of the closed loop.

    Raises:
        ValueError: an argument that is missing, out of range or without an effect.
    """

    start: float
    points: list[tuple[int, float]] | None = None
    shape: str = "linear"
    target: tuple[float, float] | None = None
    gain: float | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_known("shape", self.shape, SHAPES)
        for problem in (self._bad_plan(), self._bad_loop()):
            if problem:
                raise ValueError(problem)

    def _bad_plan(self) -> str | None:
        rollouts = [0, *(rollout for rollout, _ in self.points or [])]
        is_rising = len(rollouts) > 1 and rollouts == sorted(set(rollouts))
        if self.points is not None and not is_rising:
            return f"points={self.points} must be [rollout, value] pairs with rising rollouts > 0"
        if any(value < 0 for value in (self.start, *(value for _, value in self.points or []))):
            return f"start={self.start}, points={self.points}: no value may be negative"
        if self.points is None and self.shape != "linear":
            return f"shape={self.shape} has no effect without points; give points"
        if self.points is not None and self.target is not None:
            return f"points={self.points}, target={self.target}: give one of them"
        return None

    def _bad_loop(self) -> str | None:
        if self.target is None:
            given = f"gain={self.gain}, bounds={self.bounds}"
            unused = (self.gain, self.bounds) != (None, None)
            return f"{given} have no effect without target; give a band" if unused else None
        if not 0 < self.target[0] <= self.target[1]:
            return f"target={self.target} must be a band [low, high] in nats, 0 < low <= high"
        if self.gain is not None and self.gain <= 0:
            return f"gain={self.gain} must be positive"
        low, high = self.bounds or (0.0, 0.0)
        if not 0 < low <= self.start <= high:
            return f"bounds={self.bounds}, start={self.start}: need 0 < low <= start <= high"
        return None

    @property
    def largest(self) -> float:
        """The largest value that the schedule can take."""
        return max([self.start, *(self.bounds or ()), *(value for _, value in self.points or [])])

    def value(self, rollouts: int, last: float | None, entropy: float | None) -> float:
        """Return the value for the next rollout.

        Args:
            rollouts: rollouts so far.
            last: value of the last one, None before the first.
            entropy: mean token entropy (nats) of the last one, None before the first; NaN (heads
                dropped every completion) leaves the value as it is.
        """
        if self.points is not None:
            return self._planned(rollouts, self.points)
        if self.target is not None and last is not None and entropy is not None:
            return last if math.isnan(entropy) else self._controlled(last, entropy)
        return self.start

    def _planned(self, rollouts: int, points: list[tuple[int, float]]) -> float:
        ways = list(pairwise([(0, self.start), *points]))
        (begin, old), (end, new) = next((way for way in ways if rollouts < way[1][0]), ways[-1])
        progress = min(1.0, (rollouts - begin) / (end - begin))
        is_linear = self.shape == "linear"
        share = progress if is_linear else 0.5 * (1 - math.cos(math.pi * progress))
        return old + share * (new - old)

    def _controlled(self, last: float, entropy: float) -> float:
        assert self.target is not None
        assert self.bounds is not None
        low, high = self.target
        error = (low - min(entropy, low)) / low - (max(entropy, high) - high) / high
        gain = 0.1 if self.gain is None else self.gain
        return min(max(last * math.exp(gain * error), self.bounds[0]), self.bounds[1])


class KLCovScheduler(Described, SetsObjective):
    """Sets the weight, the fraction or both of the objective ``KLCov`` before each rollout.

    Logs what it set as ``kl_cov/weight`` and ``kl_cov/fraction``; writes an event into
    ``events.jsonl`` at the start and whenever a value begins to rise, to fall or to rest.

    Args:
        weight: schedule of KL-Cov's weight; null = left as it is.
        fraction: schedule of the share of tokens that are picked; null = left as it is.

    Raises:
        ValueError: no schedule, or a fraction that can reach 1.
    """

    def __init__(self, weight: Schedule | None = None, fraction: Schedule | None = None):
        SetsObjective.__init__(self)
        if weight is None and fraction is None:
            raise ValueError(
                "weight=null, fraction=null: KLCovScheduler needs a schedule for at least one of"
                " them"
            )
        if fraction is not None and fraction.largest >= 1:
            raise ValueError(
                f"fraction can reach {fraction.largest}: a share of the tokens must stay below 1"
            )
        given = {"weight": weight, "fraction": fraction}
        self.schedules = {
            name: schedule for name, schedule in given.items() if schedule is not None
        }
        self.values: dict[str, float] = {}
        self.moves: dict[str, str] = {}
        self.rollouts, self.entropy = 0, None

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse an objective that has nothing to schedule."""
        if not (stage == "fit" or pl_module.fits_next):
            return
        if not isinstance(pl_module.objective, KLCov):
            raise ValueError(
                "KLCovScheduler needs model.objective=KLCov, not"
                f" {type(pl_module.objective).__name__}; set that, or remove the callback"
            )
        self.given = {name: getattr(pl_module.objective, name) for name in self.schedules}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: RLIFModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this rollout's values."""
        before = dict(self.values)
        for name, schedule in self.schedules.items():
            self.values[name] = schedule.value(self.rollouts, before.get(name), self.entropy)
        pl_module.objective = replace(pl_module.objective, **self.values)
        for name, value in self.values.items():
            self._record_move(trainer, pl_module, name, before.get(name), value)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the values that were used, and remember the entropy for the next."""
        for name, value in self.values.items():
            pl_module.log(f"kl_cov/{name}", value, batch_size=1)
        self.rollouts += 1
        self.entropy = float(trainer.callback_metrics["policy/entropy"])

    def _record_move(
        self, trainer: Trainer, pl_module: RLIFModule, name: str, old: float | None, new: float
    ) -> None:
        move = "rests" if old is None or new == old else "rises" if new > old else "falls"
        if move == self.moves.get(name):
            return
        self.moves[name] = move
        values = (
            {name: new} if self.entropy is None else {name: new, "policy/entropy": self.entropy}
        )
        text = f"KL-Cov's {name} {move} from now on: {new:.4g}"
        record_event(trainer, pl_module, "KLCovScheduler", "schedule", text, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the values, their moves, the last entropy and the rollouts so far."""
        return {
            "values": dict(self.values),
            "moves": dict(self.moves),
            "entropy": self.entropy,
            "rollouts": self.rollouts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.values, self.moves = dict(state_dict["values"]), dict(state_dict["moves"])
        self.entropy, self.rollouts = state_dict["entropy"], state_dict["rollouts"]
