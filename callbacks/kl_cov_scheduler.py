"""KLCovScheduler: KL-Cov's weight and fraction, by rollout or in a closed loop on entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from callbacks.events import record_event
from rlif_lightning.data.described import Described
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.module import RLIFModule

# kind -> its arguments beside `start`
KINDS = {
    "constant": (),
    "linear": ("end", "steps"),
    "cosine": ("end", "steps"),
    "piecewise": ("points",),
    "entropy": ("target", "gain", "bounds"),
}


@dataclass(frozen=True)
class Schedule:
    """How one setting moves over rollouts.

    ``linear`` and ``cosine`` go from ``start`` to ``end`` in ``steps`` rollouts and stay there;
    ``piecewise`` runs in straight lines through ``points``. ``entropy`` is a closed loop: after a
    rollout whose mean entropy H is below ``target[0]`` the value is multiplied by
    ``exp(gain * (target[0] - H) / target[0])``, above ``target[1]`` by
    ``exp(-gain * (H - target[1]) / target[1])``; inside the band it stays. It is clamped to
    ``bounds``.

    Args:
        kind: constant | linear | cosine | piecewise | entropy.
        start: value of the first rollout (not for piecewise).
        end: value from rollout `steps` on (linear, cosine).
        steps: rollouts from `start` to `end` (linear, cosine).
        points: [rollout, value] pairs with rising rollouts; flat before the first and after the
            last (piecewise).
        target: band of mean token entropy in nats, low and high (entropy).
        gain: factor of a relative deviation (entropy); 0.1 if not given.
        bounds: lowest and highest value (entropy).

    Raises:
        ValueError: an unknown kind, an argument that is missing, out of range or without an effect.
    """

    kind: str = "constant"
    start: float | None = None
    end: float | None = None
    steps: int | None = None
    points: list[tuple[int, float]] | None = None
    target: tuple[float, float] | None = None
    gain: float | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        needed = {*KINDS[self.kind], *([] if self.kind == "piecewise" else ["start"])}
        given = {field.name for field in fields(self) if getattr(self, field.name) is not None} - {
            "kind"
        }
        if (needed - {"gain"}) - given or given - needed:
            raise ValueError(
                f"schedule kind={self.kind} takes {sorted(needed)}; given were {sorted(given)}"
            )
        for problem in (self._bad_plan(), self._bad_loop()):
            if problem:
                raise ValueError(problem)

    def _bad_plan(self) -> str | None:
        if self.steps is not None and self.steps < 1:
            return f"steps={self.steps} must be at least 1"
        rollouts = [rollout for rollout, _ in self.points or []]
        if self.points is not None and (not rollouts or rollouts != sorted(set(rollouts))):
            return f"points={self.points} must be [rollout, value] pairs with rising rollouts"
        values = [self.start, self.end, *(value for _, value in self.points or [])]
        if any(value is not None and value < 0 for value in values):
            return (
                f"start={self.start}, end={self.end}, points={self.points}: no value may be"
                " negative"
            )
        return None

    def _bad_loop(self) -> str | None:
        if self.target is not None and not 0 < self.target[0] <= self.target[1]:
            return f"target={self.target} must be a band [low, high] in nats, 0 < low <= high"
        if self.gain is not None and self.gain <= 0:
            return f"gain={self.gain} must be positive"
        if self.bounds is not None and self.start is not None:
            low, high = self.bounds
            if not 0 < low <= self.start <= high:
                return f"bounds={self.bounds}, start={self.start}: need 0 < low <= start <= high"
        return None

    @property
    def largest(self) -> float:
        """The largest value that the schedule can take."""
        values = [
            self.start,
            self.end,
            *(self.bounds or ()),
            *(value for _, value in self.points or []),
        ]
        return max(value for value in values if value is not None)

    def value(self, rollouts: int, last: float | None, entropy: float | None) -> float:
        """Return the value for the next rollout.

        Args:
            rollouts: rollouts so far.
            last: value of the last one, None before the first.
            entropy: mean token entropy (nats) of the last one, None before the first; NaN (heads
                dropped every completion) leaves the value as it is.
        """
        if self.kind == "piecewise":
            assert self.points is not None
            return float(
                np.interp(
                    rollouts, [at for at, _ in self.points], [value for _, value in self.points]
                )
            )
        assert self.start is not None
        if self.kind == "entropy" and last is not None and entropy is not None:
            return last if math.isnan(entropy) else self._controlled(last, entropy)
        if self.end is None or self.steps is None:
            return self.start
        progress = min(1.0, rollouts / self.steps)
        share = progress if self.kind == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + share * (self.end - self.start)

    def _controlled(self, last: float, entropy: float) -> float:
        assert self.target is not None
        assert self.bounds is not None
        low, high = self.target
        error = (low - min(entropy, low)) / low - (max(entropy, high) - high) / high
        gain = 0.1 if self.gain is None else self.gain
        return min(max(last * math.exp(gain * error), self.bounds[0]), self.bounds[1])


class KLCovScheduler(Described, Callback):
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
        if (stage == "fit" or pl_module.fits_next) and not isinstance(pl_module.objective, KLCov):
            raise ValueError(
                "KLCovScheduler needs model.objective=KLCov, not"
                f" {type(pl_module.objective).__name__}; set that, or remove the callback"
            )

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
