"""Guard: what all callbacks share that watch a run's figures by detectors and act on an alarm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer

from callbacks.detectors import Baseline, DetectorState, Watch
from callbacks.events import record_alarm, record_event
from callbacks.guard_detectors import GuardDetector, verdict, with_changes
from callbacks.kl_cov_scheduler import KLCovScheduler
from callbacks.stare_controller import STAREController
from callbacks.steering import Snapshots, check_scale, read_setting, scale_setting
from rlif_lightning.data.described import Described
from rlif_lightning.evaluation.label_checks import label_uses
from rlif_lightning.module import RLIFModule
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import MeanLogprob, NegativeEntropy, Rubric, SelfCertainty
from rlif_lightning.rewards.held_head import HoldsHead, heads_in
from rlif_lightning.rewards.vote_head import VoteHead

ACTIONS = ("warn", "stop", "adjust", "rollback")
CERTAINTY_HEADS = (MeanLogprob, NegativeEntropy, SelfCertainty)
# Weight of a reference KL that holds a policy. In docs/collapse-study.md 0.3 held it on every seed,
# 0.1 on some.
ANCHOR = 0.2


class Guard(Described, Callback, ABC):
    """Watches a run's figures by detectors, and acts on an alarm.

    A symptom of severity ``notice`` is written to ``events.jsonl``. A symptom of severity ``alarm``
    is also a warning, and the guard acts on it:

    - ``warn``: nothing more.
    - ``stop``: ends the run.
    - ``adjust``: multiplies the settings in ``scale``.
    - ``rollback``: restores policy and optimiser from the older of the last two snapshots,
      multiplies the settings in ``scale`` and goes on with new samples. A baseline that was not
      full at the snapshot is learnt anew.

    An alarm after ``max_actions`` adjustments or rollbacks ends the run. Detectors of space
    ``drive`` (what pushes a policy) are not judged where a reference KL of weight 0.2 or more
    holds it. Decisions rest on figures of all ranks, so every rank takes the same one. Every alarm,
    notice, recovery and action is written to ``events.jsonl``.

    Args:
        action, scale, baseline, detectors, snapshot_every, max_actions: as for
            :class:`CollapseGuard`.

    Attributes:
        usual: the detectors without changes.
        alarms: name of the figure that counts the active alarms.

    Raises:
        ValueError: an unknown action or detector setting, or a number out of range.
    """

    usual: ClassVar[Mapping[str, GuardDetector]]
    alarms: ClassVar[str]

    def __init__(
        self,
        action: str = "warn",
        scale: dict[str, float] | None = None,
        baseline: int = 5,
        detectors: dict[str, dict[str, Any] | None] | None = None,
        snapshot_every: int = 10,
        max_actions: int = 3,
    ):
        if action not in ACTIONS:
            raise ValueError(f"action={action!r} is unknown; use one of {', '.join(ACTIONS)}")
        if scale is not None and action in ("warn", "stop"):
            raise ValueError(
                f"scale={scale} has no effect with action={action}; use adjust or rollback"
            )
        if scale is not None and (not scale or any(factor < 0 for factor in scale.values())):
            raise ValueError(
                f"scale={scale} must name at least one setting, with a factor that is not negative"
            )
        if baseline < 1 or snapshot_every < 1 or max_actions < 1:
            raise ValueError(
                f"baseline={baseline}, snapshot_every={snapshot_every}, max_actions={max_actions}:"
                " each at least 1"
            )
        self.action, self.scale = action, scale or {"learning_rate": 0.5}
        self.baseline, self.snapshot_every, self.max_actions = baseline, snapshot_every, max_actions
        self.detectors = {
            name: replace(detector, baseline=Baseline(baseline))
            for name, detector in with_changes(self.usual, detectors).items()
        }
        super().__init__()
        self.watch = Watch(self.detectors)
        self.num_actions, self.stopped = 0, False
        self.snapshots = Snapshots()

    @property
    def name(self) -> str:
        """The name in events."""
        return type(self).__name__

    @property
    def acts(self) -> bool:
        """Whether the guard changes settings during a run."""
        return self.action in ("adjust", "rollback")

    @property
    def acts_by(self) -> list[str]:
        """The figures whose alarms change the run, or end it."""
        alarms = [it.metric for name, it in self.detectors.items() if self._is_alarm(name)]
        return [] if self.action == "warn" else list(dict.fromkeys(alarms))

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Check the settings that would be scaled, and that no earlier fit has scaled them."""
        if not self.acts or not (stage == "fit" or pl_module.fits_next):
            return
        if self.num_actions:  # not of a checkpoint: that is loaded later
            raise ValueError(
                f"this {self.name} changed settings in an earlier fit; begin with a new guard and a"
                " new module, and go on by ckpt_path"
            )
        names = [name for name in self.scale if name.startswith("objective.")]
        others = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        steering = [each for each in others if isinstance(each, KLCovScheduler | STAREController)]
        if names and steering:
            raise ValueError(
                f"scale={names}: {type(steering[0]).__name__} sets the objective in every rollout;"
                " take one of them out"
            )
        guards = [each for each in others if isinstance(each, Guard)]
        if self.action == "rollback" and sum(each.action == "rollback" for each in guards) > 1:
            raise ValueError(
                f"action=rollback of {' and '.join(each.name for each in guards)}: they would keep"
                " snapshots of the same names; set another action in all but one"
            )
        check_scale(trainer, pl_module, self.scale, self.max_actions)

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Find the snapshots, and scale again after a restart."""
        trainer.should_stop = trainer.should_stop or self.stopped
        if not self.acts:
            return
        if self.action == "rollback":
            self.snapshots.settle(trainer)
        for name, factor in self.scale.items():
            if name != "learning_rate":  # checkpoints keep it with its schedule
                for _ in range(self.num_actions):  # one by one: a power rounds differently
                    scale_setting(trainer, pl_module, name, factor)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: RLIFModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the first snapshot, of the policy that training starts or resumes with."""
        if self.action == "rollback" and not self.snapshots.taken:
            self.snapshots.take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure and judge the rollout, record what changed, and act on a new alarm."""
        self.measure(trainer, pl_module, outputs)
        kinds = kinds_of_run(pl_module, outputs["rewards"])
        values = {
            name: self._value(trainer, name, detector, kinds)
            for name, detector in self.detectors.items()
        }
        new, ended = self.watch.update(values)
        alarms = sum(self._is_alarm(name) for name in self.watch.active)
        pl_module.log(self.alarms, float(alarms), batch_size=1)
        for name in ended:
            text = f"{name}: {self.detectors[name].metric} is back at {values[name]:.4g}"
            evidence = self.watch.evidence(name, values[name])
            record_event(trainer, pl_module, self.name, "recovery", text, evidence)
        for name in new:
            self._report(trainer, pl_module, name, values[name])
        if any(map(self._is_alarm, new)):
            self._act(trainer, pl_module)
        elif self.action == "rollback" and self._is_snapshot_due(pl_module):
            self.snapshots.take(trainer, pl_module)

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: RLIFModule, outputs: Any) -> None:
        """Log the figures of a rollout that nothing else logs (a collective)."""

    def _value(
        self, trainer: Trainer, name: str, detector: GuardDetector, kinds: set[str]
    ) -> float:
        logged = trainer.callback_metrics
        if detector.metric not in logged:
            raise ValueError(
                f"detectors.{name}.metric={detector.metric!r} is not logged by this run; logged:"
                f" {', '.join(sorted(logged))}; a callback that logs it stands before {self.name}"
            )
        judged = detector.runs in kinds and not (detector.space == "drive" and "anchored" in kinds)
        return float(logged[detector.metric]) if judged else math.nan

    def _is_alarm(self, name: str) -> bool:
        return self.detectors[name].severity == "alarm"

    def _is_snapshot_due(self, pl_module: RLIFModule) -> bool:
        calm = not any(
            d.is_beyond(self.watch.states[name])
            for name, d in self.detectors.items()
            if self._is_alarm(name)
        )
        return (
            calm
            and int(pl_module.num_rollouts) - self.snapshots.taken[-1][0] >= self.snapshot_every
        )

    def _report(self, trainer: Trainer, pl_module: RLIFModule, name: str, value: float) -> None:
        detector = self.detectors[name]
        alarms = [other for other in self.watch.active if self._is_alarm(other)]
        kind = verdict({self.detectors[other].space for other in alarms})
        message = f"{name}: {detector.describe(self.watch.states[name])} This is {kind}."
        if len(alarms) > 1:
            message += f" Active alarms: {', '.join(alarms)}."
        values = self.watch.evidence(name, value) | {"space": detector.space}
        if self._is_alarm(name):
            record_alarm(trainer, pl_module, self.name, message, values)
        else:
            record_event(trainer, pl_module, self.name, detector.severity, message, values)

    def _act(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        if self.action == "warn":
            return
        if self.action == "stop" or self.num_actions >= self.max_actions:
            trainer.should_stop = self.stopped = True
            why = (
                "the action is stop"
                if self.action == "stop"
                else f"after {self.num_actions} times {self.action}"
            )
            record_event(trainer, pl_module, self.name, "stop", f"training ends here: {why}")
            return
        self.num_actions += 1
        message = f"{self.action} {self.num_actions} of at most {self.max_actions}"
        if self.action == "rollback":
            rollout = self.snapshots.restore(trainer, pl_module)
            self._go_back_to(rollout)
            message += f": policy and optimiser as after rollout {rollout}"
        for name, factor in self.scale.items():
            before = read_setting(trainer, pl_module, name)
            scale_setting(trainer, pl_module, name, factor)
            after = read_setting(trainer, pl_module, name)
            message += f"; {name.replace('_', ' ')} {before:.3g} to {after:.3g}"
        record_event(trainer, pl_module, self.name, self.action, message, self.scale)

    def _go_back_to(self, rollout: int) -> None:
        # A baseline that was not full at the snapshot has figures of the policy that collapsed.
        keeps = rollout >= self.baseline
        self.watch.states = {
            name: DetectorState(first=state.first if keeps else (), count=state.count)
            for name, state in self.watch.states.items()
        }

    def why_stopped(self) -> tuple[str, str] | None:
        """Return why the guard ended the run (``running/endings.py``); None if it did not."""
        return (
            ("guard", f"an alarm, and the action is {self.action}; see events.jsonl")
            if self.stopped
            else None
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the detectors' states, actions, snapshots, and whether the run was ended."""
        return {
            "detectors": self.watch.state_dict(),
            "num_actions": self.num_actions,
            "snapshots": self.snapshots.state_dict(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made; a detector that is new since then begins now."""
        self.watch.load_state_dict(state_dict["detectors"])
        self.num_actions, self.stopped = state_dict["num_actions"], state_dict["stopped"]
        self.snapshots.load_state_dict(state_dict["snapshots"])


def certainty_part(part: Any) -> float:
    """Return how far a score is the policy's certainty, 0 to 1: of a rubric, by its weights."""
    if isinstance(part, Rubric):
        held = [(abs(it.weight), certainty_part(it.criterion)) for it in part.settings.values()]
        return sum(weight * of for weight, of in held) / sum(weight for weight, _ in held)
    if isinstance(part, HoldsHead):
        return certainty_part(part.head)
    return float(isinstance(part, CERTAINTY_HEADS))


def kinds_of_run(module: RLIFModule, outputs: dict[str, RewardOutput]) -> set[str]:
    """Return which of the detectors' ``runs`` a run is, and whether it is ``anchored``.

    Heads count that have a weight, or are held by one that has.
    """
    weighted = [name for name, reward in module.rewards.settings.items() if reward.weight]
    heads = [head for name in weighted for head in heads_in(module.rewards.settings[name].head)]
    kinds = {"all"} if label_uses(module) else {"all", "label_free"}
    votes = any(outputs[name].answers is not None for name in weighted)
    votes = votes or any(isinstance(head, VoteHead) for head in heads)
    kinds |= {"vote"} if votes else set()
    kinds |= {"anchored"} if module.objective.reference_kl.weight >= ANCHOR else set()
    return kinds | (
        {"certainty"} if any(isinstance(head, CERTAINTY_HEADS) for head in heads) else set()
    )
