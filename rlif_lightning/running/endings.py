"""How a run ended: a word, a sentence and an exit code for every way out of training."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from rlif_lightning.learning.non_finite import NonFiniteGradient
from rlif_lightning.model.out_of_memory import is_out_of_memory
from rlif_lightning.processes.collectives import all_process_objects
from rlif_lightning.processes.ranks import gone, own_place
from rlif_lightning.running.events import append_event
from rlif_lightning.running.lightning_internals import epoch_is_over
from rlif_lightning.running.own_files import OwnFiles, disk_errors_printed, own_files
from rlif_lightning.running.planned import planned_of
from rlif_lightning.running.stop_signals import INTERRUPTED

DECIDED = ("guard", "label_free_stop", "early_stop", "stopped")  # by a callback: the run stays over
FAILED, MISTAKEN = 1, 2  # exit codes: an error, and a mistake in the settings or the data
# What gloo, NCCL and the sockets below them say where another process is gone.
LOST = re.compile(
    r"remote (worker|process)|Connection (closed|reset|refused)|Broken pipe|unhandled system error",
    re.I,
)


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        reason: finished | max_steps | max_time | guard | label_free_stop | early_stop | stopped |
            signal | non_finite_gradient | memory | lost_process | error.
        message: one sentence.
        exit_code: of the process.
        by: class of the callback that decided it, if one did.
    """

    reason: str
    message: str
    exit_code: int = 0
    by: str | None = None


def takes_its_last_step(trainer: Trainer) -> bool:
    """Return whether the step that has just been made is the run's last one."""
    loop = trainer.fit_loop
    last = (
        loop.max_epochs is not None
        and loop.max_epochs != -1
        and trainer.current_epoch + 1 >= loop.max_epochs
    )
    whole = epoch_is_over(trainer)
    return loop.epoch_loop.done and (
        not whole or last or trainer.should_stop or _at_max_steps(trainer)
    )


def ending_of(trainer: Trainer) -> Ending:
    """Return how a run ended by itself: by a limit, or by a callback that stopped it."""
    rollouts = f"after rollout {int(trainer.lightning_module.num_rollouts)}"  # type: ignore[arg-type]
    if trainer.should_stop:
        told = [ending for each in _callbacks(trainer) if (ending := _decision(each)) is not None]
        return (
            told[0] if told else Ending("stopped", f"a callback set trainer.should_stop {rollouts}")
        )
    if _at_max_steps(trainer):
        return Ending("max_steps", f"trainer.max_steps={trainer.max_steps} is reached {rollouts}")
    return Ending("finished", f"trainer.max_epochs={trainer.max_epochs} is reached {rollouts}")


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def _decision(callback: Any) -> Ending | None:
    """Return a callback's own decision to stop: Lightning's by state, others by ``why_stopped``."""
    name = type(callback).__name__
    if (
        isinstance(callback, EarlyStopping)
        and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED
    ):
        return Ending(
            "early_stop",
            f"{name}: {' '.join(str(callback.stopping_reason_message).split())}",
            by=name,
        )
    if (
        isinstance(callback, Timer)
        and (left := callback.time_remaining()) is not None
        and left <= 0
    ):
        return Ending(
            "max_time",
            f"the time of trainer.max_time is used up: {callback.time_elapsed():.0f} s",
            by=name,
        )
    why = getattr(callback, "why_stopped", None)
    told = None if why is None else why()
    return None if told is None else Ending(told[0], f"{name}: {told[1]}", by=name)


def still_decided(over: dict[str, Any], trainer: Trainer) -> bool:
    """Return whether what ended a run still holds: while the callback that decided it is there."""
    names = [type(callback).__name__ for callback in _callbacks(trainer)]
    return over["reason"] in DECIDED and (over["by"] is None or over["by"] in names)


def remedy(reason: str, by: str | None) -> str:
    """Return what a user does to train on after a run is over."""
    limits = {
        "finished": "trainer.max_epochs",
        "max_steps": "trainer.max_steps",
        "max_time": "trainer.max_time",
    }
    if reason in limits:
        return f"raise {limits[reason]} to train on"
    return f"{f'take {by} out, or ' if by else ''}name a checkpoint (--ckpt_path=PATH) to train on"


def _at_max_steps(trainer: Trainer) -> bool:
    return trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps


def ending_of_error(error: BaseException, places: Sequence[tuple[str, int]] = ()) -> Ending:
    """Return how a run ended by an exception.

    Args:
        error: the exception.
        places: of all processes, by number, to say which one was lost; see :func:`own_place`.
    """
    if isinstance(error, KeyboardInterrupt):
        return Ending("signal", "interrupted at once, unsaved", INTERRUPTED)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else FAILED
        return Ending(
            "signal",
            "a signal asked to stop; the step was finished and saved if training had begun",
            code,
        )
    text = " ".join(f"{type(error).__name__}: {error}".split())
    chain = list(_causes(error))
    if any(isinstance(each, NonFiniteGradient) for each in chain):
        return Ending("non_finite_gradient", text, FAILED)
    if any(is_out_of_memory(each) or str(each).startswith("out of memory") for each in chain):
        return Ending("memory", text, FAILED)
    if (
        any(isinstance(each, dist.DistError) or LOST.search(str(each)) for each in chain)
        and dist.is_initialized()
    ):
        return Ending("lost_process", f"{_lost(places)} is gone: {text}", FAILED)
    return Ending("error", text, MISTAKEN if own_mistake(error) is not None else FAILED)


def _lost(places: Sequence[tuple[str, int]]) -> str:
    """Name the lost process, whose connections close a moment before it is gone."""
    for _ in range(50 * bool(places)):  # five seconds: the machine may be busy
        if numbers := gone(places):
            return " and ".join(f"process {number} (pid {places[number][1]})" for number in numbers)
        time.sleep(0.1)
    return "another process"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def own_mistake(error: BaseException | None) -> BaseException | None:
    """Return the ValueError or TypeError that one of our checks raised; None for a bug."""
    if not isinstance(error, (ValueError, TypeError)):
        return None
    modules = (sys.modules.get(name) for name in ("rlif_lightning", "callbacks"))
    packages = tuple(
        str(Path(module.__file__ or "").parent) for module in modules if module is not None
    )
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].filename.startswith(packages):
            return error
        error = error.__cause__  # jsonargparse wraps what the constructor of a callback raises
    return None


class RunEnd(Callback):
    """Writes the event ``end`` of every run, with reason and exit code; the last one counts.

    RLIFTrainer puts it before all other callbacks, so that a report that is made at the end can
    show it. The first process writes it; where another process was lost, whichever is left.
    """

    def __init__(self) -> None:
        self.own: OwnFiles | None = None
        self.ending: Ending | None = None
        self.places: list[tuple[str, int]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the folder (a collective)."""
        dry: Any = trainer
        if stage == "fit" and not dry.fast_dev_run:
            self.own, self.ending = own_files(trainer), None
            self.places = all_process_objects(own_place())

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write the end of a run that an error or a signal ended, or of an evaluation after it."""
        ending = ending_of_error(exception, self.places)
        if ending.reason == "lost_process":
            print(f"error: {ending.message}; --ckpt_path=auto goes on", file=sys.stderr, flush=True)
        self._write(trainer, ending)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the end of a run that ended by itself, after every callback's ``on_train_end``."""
        if stage == "fit" and self.own is not None and self.ending is None:
            self._write(trainer, ending_of(trainer))

    def _write(self, trainer: Trainer, ending: Ending) -> None:
        if self.own is None or not (trainer.is_global_zero or ending.reason == "lost_process"):
            return
        self.ending = ending
        module: Any = trainer.lightning_module
        place = {"step": trainer.global_step, "rollout": int(module.num_rollouts)}
        values: dict[str, float | str] = {"reason": ending.reason, "exit_code": ending.exit_code}
        values |= {} if ending.by is None else {"by": ending.by}
        planned = planned_of(trainer, module)
        values |= {} if planned is None else {"planned": planned}
        with disk_errors_printed("the run's end could not be written down"):
            append_event(
                self.own.folder,
                {**place, "source": "run", "kind": "end", "message": ending.message},
                values,
            )
