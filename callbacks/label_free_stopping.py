"""LabelFreeStopping: end a run when its own samples say that nothing good is left to learn; no label is used.

Read `StopRule` (the rule, on plain numbers), then `first_stop` (the same rule on a finished run's
metrics.csv) and the callback. What the rule cannot see: a model that agrees with itself on wrong
answers looks like one that agrees on right ones. It stops both where the vote has no more to say,
which is early in the first case and harmless in the second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.described import Described
from rlif_lightning.running.metrics_csv import read_logged

# What each limit is about: in training, and on the held-out prompts of a validation.
SIGNALS = {
    "train": {
        "agreement": "vote/largest_cluster",
        "diversity": "vote/distinct_answers",
        "entropy": "policy/entropy",
    },
    "validation": {
        "agreement": "val/agreement",
        "diversity": "val/diversity",
        "entropy": "val/entropy",
    },
}


@dataclass(frozen=True)
class StopRule:
    """Stop once a limit has been passed ``patience`` times in a row; a null limit never stops.

    Signals are means over the last ``window`` values. Agreement is absolute; diversity and entropy
    are relative to their mean over the first ``window`` values, so that one rule fits models and
    tasks of any kind.

    Args:
        agreement: stop above this mean share of the largest cluster, in (0, 1].
        diversity: stop below this fraction of the distinct answers at the start, in (0, 1).
        entropy: stop below this fraction of the token entropy at the start, in (0, 1).
        window: values that a mean is taken over, at least 1.
        patience: values in a row beyond a limit, at least 1.

    Raises:
        ValueError: a number out of range, or no limit at all.
    """

    agreement: float | None = 0.95
    diversity: float | None = 0.4
    entropy: float | None = 0.1
    window: int = 5
    patience: int = 3

    def __post_init__(self) -> None:
        limits = {"agreement": self.agreement, "diversity": self.diversity, "entropy": self.entropy}
        for name, limit in limits.items():
            if limit is not None and not 0 < limit <= 1:
                raise ValueError(f"{name}={limit} must lie in (0, 1], or be null for no limit")
        if not any(limits.values()):
            raise ValueError(
                "agreement, diversity and entropy are all null: the rule could never stop"
            )
        if self.window < 1 or self.patience < 1:
            raise ValueError(
                f"window={self.window}, patience={self.patience}: both must be at least 1"
            )

    @property
    def watched(self) -> list[str]:
        """The signals that have a limit."""
        return [
            name
            for name in ("agreement", "diversity", "entropy")
            if getattr(self, name) is not None
        ]

    def crossed(self, name: str, mean: float, start: float) -> bool:
        """Whether a signal's mean is beyond its limit."""
        limit = getattr(self, name)
        return mean > limit if name == "agreement" else mean < limit * start


class StopWatch:
    """Applies a rule to the values of a run, one at a time.

    Args:
        rule: when to stop.
    """

    def __init__(self, rule: StopRule):
        self.rule = rule
        self.values: dict[str, deque[float]] = {
            name: deque(maxlen=rule.window) for name in rule.watched
        }
        self.starts: dict[str, float] = {}
        self.streaks = dict.fromkeys(rule.watched, 0)

    def add(self, signals: dict[str, float]) -> str | None:
        """Take one value of each watched signal; the reason to stop, or None. Nothing stops in the first window."""
        reason = None
        for name in self.rule.watched:
            values = self.values[name]
            values.append(signals[name])
            mean = sum(values) / len(values)
            if len(values) < self.rule.window:
                continue
            if name not in self.starts:
                self.starts[name] = mean
                continue
            crossed = self.rule.crossed(name, mean, self.starts[name])
            self.streaks[name] = self.streaks[name] + 1 if crossed else 0
            if self.streaks[name] >= self.rule.patience and reason is None:
                reason = (
                    f"{name} {mean:.3f} (at the start {self.starts[name]:.3f}, limit"
                    f" {getattr(self.rule, name)})"
                )
        return reason

    def state_dict(self) -> dict[str, Any]:
        """Windows, starts and streaks, as plain values."""
        values = {name: list(kept) for name, kept in self.values.items()}
        return {"values": values, "starts": dict(self.starts), "streaks": dict(self.streaks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken; signals that are new to the rule begin now."""
        for name in self.rule.watched:
            self.values[name].extend(state["values"].get(name, []))
            self.streaks[name] = state["streaks"].get(name, 0)
            if name in state["starts"]:
                self.starts[name] = state["starts"][name]


def first_stop(
    metrics: str | Path, rule: StopRule, signals: str = "train"
) -> tuple[int, str] | None:
    """Where a rule would have stopped a finished run.

    Args:
        metrics: the run's ``metrics.csv``.
        rule: when to stop.
        signals: train | validation.

    Returns:
        The number of values seen (rollouts, or validations) and the reason; None where it would not
        have stopped.

    Raises:
        ValueError: the file lacks a watched column; names it.
    """
    names, watch = _columns(signals, rule), StopWatch(rule)
    logged = read_logged(Path(metrics))
    if missing := sorted(set(names.values()) - set(logged.columns)):
        raise ValueError(f"{metrics} has no column {missing[0]!r}; {_remedy(signals, missing[0])}")
    known = [row for row in logged.rows if row.keys() >= set(names.values())]
    for seen, row in enumerate(known, 1):
        if reason := watch.add({name: float(row[column]) for name, column in names.items()}):
            return seen, reason
    return None


def _columns(signals: str, rule: StopRule) -> dict[str, str]:
    if signals not in SIGNALS:
        raise ValueError(f"signals={signals!r} is unknown; choose one of {sorted(SIGNALS)}")
    return {name: SIGNALS[signals][name] for name in rule.watched}


def _remedy(signals: str, column: str) -> str:
    if signals == "validation":
        return "validate between steps (trainer.val_check_interval), or use signals=train"
    if column.startswith("vote/"):
        return (
            "add a ClusterVote reward (weight 0 measures only), or set agreement and diversity"
            " to"
            " null"
        )
    return "choose other signals"


class LabelFreeStopping(Described, Callback):
    """Stops training by agreement, diversity and entropy of the policy's own samples.

    With ``signals: train`` it looks at every rollout, with ``signals: validation`` at every
    validation between steps (their figures without labels). Logs ``stopping/stopped``: 0, and 1 on
    the rollout that stops. Its state is in checkpoints.

    Args:
        agreement: see `StopRule`; stop above this share of the largest cluster.
        diversity: stop below this fraction of the starting number of distinct answers.
        entropy: stop below this fraction of the starting token entropy.
        window: values that a mean is taken over.
        patience: values in a row beyond a limit.
        signals: train | validation.

    Raises:
        ValueError: a number out of range, an unknown kind of signals, or a signal that the run does
            not log.
    """

    def __init__(
        self,
        agreement: float | None = 0.95,
        diversity: float | None = 0.4,
        entropy: float | None = 0.1,
        window: int = 5,
        patience: int = 3,
        signals: str = "train",
    ):
        self.rule = StopRule(agreement, diversity, entropy, window, patience)
        self.signals, self.columns = signals, _columns(signals, self.rule)
        self.watch = StopWatch(self.rule)
        self.reason: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to wait for validations that never come."""
        if self.signals == "validation" and trainer.limit_val_batches == 0:
            raise ValueError(
                "signals=validation looks at validations, and trainer.limit_val_batches=0 makes"
                " none; validate, or use"
                " signals=train"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped stays stopped when it is started again (without this callback it goes on)."""
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the rollout."""
        if self.signals == "train":
            self._judge(trainer)
        pl_module.log("stopping/stopped", float(self.reason is not None), batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge a validation between steps (not those before and after training)."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self.signals == "validation" and fitting:
            self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if missing := sorted(set(self.columns.values()) - set(metrics)):
            raise ValueError(
                f"LabelFreeStopping: the run does not log {missing[0]!r};"
                f" {_remedy(self.signals, missing[0])}"
            )
        reason = self.watch.add(
            {name: float(metrics[column]) for name, column in self.columns.items()}
        )
        # The figures are the same on all ranks but for rounding: one rank's decision is
        # everybody's.
        if trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            self.reason = reason or "another process's figures"
            trainer.should_stop = True
            rank_zero_info(
                f"LabelFreeStopping at optimiser step {trainer.global_step}: {self.reason}"
            )

    def why_stopped(self) -> tuple[str, str] | None:
        """Why it ended the run (``running/endings.py``), None if it did not."""
        return None if self.reason is None else ("label_free_stop", self.reason)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, and why it stopped the run."""
        return {**self.watch.state_dict(), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self.watch.load_state_dict(state_dict)
        self.reason = state_dict["reason"]
