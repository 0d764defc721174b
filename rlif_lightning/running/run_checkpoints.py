"""RunCheckpoints: when a run is saved, what is kept, and the state that nothing else keeps."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from rlif_lightning.processes.collectives import all_process_objects
from rlif_lightning.running.best_value import KeepsBest
from rlif_lightning.running.checkpoint_files import write_checkpoint
from rlif_lightning.running.checkpoint_names import BEST, SUFFIX
from rlif_lightning.running.endings import ending_of, still_decided, takes_its_last_step
from rlif_lightning.running.leftovers import remove_leftovers
from rlif_lightning.running.lightning_internals import epoch_is_over, signals_of
from rlif_lightning.running.own_files import OwnFiles, disk_errors_printed, locate, own_files
from rlif_lightning.running.stop_signals import StopSignals


class RunCheckpoints(KeepsBest, Checkpoint):
    """Saves the whole run at the ends of rollouts, so that it resumes as if it had never stopped.

    Into ``checkpoints/`` of the run's folder: ``rollout=<n>.ckpt`` every few rollouts, at the end
    of training and when a signal asks the run to stop, and ``best.ckpt``. Nothing is saved after an
    exception, which may have come in the middle of an update: the last checkpoint is gone on from.
    The command line adds this callback to every run, and `RLIFTrainer` where no other one saves.

    Args:
        every: rollouts between two checkpoints: what is computed again, to the same numbers, after
            a crash.
        keep: how many of the newest are kept; null = all.
        monitor, mode: as for :class:`KeepsBest`, of ``best.ckpt``.

    Raises:
        ValueError: a number out of range or an unknown mode.
    """

    def __init__(
        self, every: int = 10, keep: int | None = 2, monitor: str | None = None, mode: str = "max"
    ):
        if every < 1 or (keep is not None and keep < 1):
            raise ValueError(
                f"every={every}, keep={keep}: both must be at least 1 (keep=null keeps all)"
            )
        super().__init__(monitor, mode)
        self.every, self.keep = every, keep
        self.kept: list[Path] = []
        self.best_path: Path | None = None
        self.saved = -1  # rollouts at the last save
        # Set by the command line: this run takes the place of the one that it resumes.
        self.continues = False
        self.off = False
        self.signals: StopSignals | None = None
        self.own: OwnFiles | None = None
        self.over: dict[str, Any] | None = None  # how the run ended, once its last step is made
        self._random_states: list[dict[str, Any]] = []

    @property
    def oldest(self) -> float:
        """Return the rollouts at the oldest kept checkpoint; 0 if all are kept."""
        if self.keep is None:
            return 0
        return int(self.kept[0].stem.split("=")[1]) if self.kept else math.inf

    @property
    def best_model_path(self) -> str:
        """Return what ``ckpt_path="best"`` of a trainer in Python means; the newest without it."""
        path = self.best_path or (self.kept[-1] if self.kept else None)
        return "" if path is None else str(path)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the folder (a collective), and check that the trainer calls :meth:`on_step_end`."""
        if stage != "fit":
            return
        if (
            self.monitor is not None
            and self.monitor.startswith("val")
            and trainer.limit_val_batches == 0
        ):
            raise ValueError(
                f"monitor={self.monitor!r} is of evaluations, and trainer.limit_val_batches=0"
                " makes none; evaluate, or"
                " set monitor to null"
            )
        self.signals = signals_of(trainer)
        if not isinstance(self.signals, StopSignals):
            raise TypeError(
                f"RunCheckpoints saves at the ends of steps, which {type(trainer).__name__} of"
                " Lightning does not report; use rlif_lightning.RLIFTrainer, or ModelCheckpoint"
            )
        self.off = bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]
        self.own = own_files(trainer)
        self.folder = self.own.folder / "checkpoints"
        root = Path(trainer.default_root_dir)
        if self.continues and root.resolve() not in (
            path.resolve() for path in list(self.folder.parents)[:2]
        ):
            raise ValueError(
                f"ckpt_path=auto and last look in {root}/version_N, but this run's logger writes"
                " into"
                f" {self.folder.parent}; give ckpt_path a path, or take trainer.logger out"
            )

    def stays_over(self, trainer: Trainer) -> bool:
        """Return whether this run resumes one that a callback ended; then it does not train."""
        if self.over is None or not still_decided(self.over, trainer):
            self.over = None
            return False
        return True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put random states back, and remove what this run's earlier lives left."""
        if trainer.global_rank < len(self._random_states):
            _set_random_state(self._random_states[trainer.global_rank])
        self.saved = int(pl_module.num_rollouts)
        if trainer.is_global_zero and not self.off:
            self._own.settle()
            with disk_errors_printed("what an earlier life left could not be removed"):
                remove_leftovers(self._own, self.kept, self.best_path)
        assert self.signals is not None
        self.signals.finishes_steps = True

    def on_step_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save where it is due, and exit where a signal asked to (a collective).

        Raises:
            SystemExit: after a signal, once everything is saved.
        """
        if not self.off and not epoch_is_over(trainer):
            self._save_what_is_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save after an epoch's last step, as :meth:`on_step_end` does after the others."""
        if not self.off:
            self._save_what_is_due(trainer, pl_module)

    def _save_what_is_due(self, trainer: Trainer, pl_module: Any) -> None:
        rollouts = int(pl_module.num_rollouts)
        if rollouts == self.saved:
            return
        self._save_best(trainer)
        assert self.signals is not None
        code = self.signals.agreed_signal()
        if code is not None or rollouts % self.every == 0 or takes_its_last_step(trainer):
            self._save(trainer, rollouts)
        if code is not None:
            if trainer.is_global_zero:
                text = (
                    f"stopped on request after rollout {rollouts}, saved as {self.kept[-1]};"
                    " --ckpt_path=auto goes on"
                )
                print(text, file=sys.stderr, flush=True)
            # Only the first process ends with a code: Lightning kills every process at once when
            # one that it started does.
            raise SystemExit(code if trainer.is_global_zero else 0)

    def _save(self, trainer: Trainer, rollouts: int) -> None:
        path = self.folder / f"rollout={rollouts:06d}{SUFFIX}"
        self.kept = [*(other for other in self.kept if other != path), path]
        dropped = [] if self.keep is None else self.kept[: -self.keep]
        self.kept = self.kept[len(dropped) :]
        self.saved = rollouts
        self.over = asdict(ending_of(trainer)) if takes_its_last_step(trainer) else None
        write_checkpoint(trainer, path)
        if trainer.is_global_zero:
            if self.over is not None:
                self._own.settle(over=self.over)
            for old in dropped:
                self._own.remove(old)

    def _save_best(self, trainer: Trainer) -> None:
        """Save where the figure is better than before; an earlier step's is not."""
        if self.monitor is None or self.monitor not in trainer.callback_metrics:
            return
        value = float(
            trainer.callback_metrics[self.monitor]
        )  # reduced: every process decides alike
        if not self.is_better(value):
            return
        old, self.best, self.best_path = self.best_path, value, self.folder / BEST
        write_checkpoint(trainer, self.best_path)
        if trainer.is_global_zero and old is not None and old != self.best_path:
            self._own.remove(old)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Let signals act at once from here on.

        Raises:
            RuntimeError: ``monitor`` was never logged as a number.
        """
        self.on_exception(trainer, pl_module)
        if self.monitor is not None and self.best is None and not self.off:
            raise RuntimeError(
                f"monitor={self.monitor!r} was never logged as a number, so there is no best.ckpt;"
                " logged:"
                f" {', '.join(sorted(trainer.callback_metrics))}"
            )

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write down that nothing is left to do: exports and report come before this."""
        if stage == "fit" and self.own is not None and not self.off and trainer.is_global_zero:
            self.own.settle(over=self.over, ended=True)

    def on_exception(
        self, trainer: Trainer, pl_module: Any, exception: BaseException | None = None
    ) -> None:
        """Let signals act at once."""
        if self.signals is not None:
            self.signals.finishes_steps = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Count an epoch that ends here as over; with max_steps Lightning would count it again."""
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        if epochs["current"]["processed"] == epochs["current"]["completed"] + 1:
            epochs["total"]["completed"] += 1
            epochs["current"]["completed"] += 1
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the run's name, kept files, best, end, and random states (a collective)."""
        own = self._own
        return {
            "run": own.run,
            "kept": [own.name(path) for path in self.kept],
            "best": self.best,
            "best_path": None if self.best_path is None else own.name(self.best_path),
            "over": self.over,
            "random_states": all_process_objects(_random_state()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's state; of another run's, the random states alone."""
        if (own := self.own) is None:  # an evaluation
            return
        self._random_states = state_dict["random_states"]
        self.continues = self.continues and own.take_the_place_of(state_dict.get("run"))
        if self.continues:
            self.over = state_dict["over"]
            named = [locate(name, own.source_folder) for name in state_dict["kept"]]
            self.kept = [
                path for path in named if path is not None and path.exists() and own.owns(path)
            ]
            self.best, self.best_path = (
                state_dict["best"],
                locate(state_dict["best_path"], own.source_folder),
            )

    @property
    def _own(self) -> OwnFiles:
        assert self.own is not None, "setup comes first"
        return self.own


def run_checkpoints(trainer: Trainer) -> list[RunCheckpoints]:
    """Return the RunCheckpoints among a trainer's callbacks."""
    others = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in others if isinstance(callback, RunCheckpoints)]


def _random_state() -> dict[str, Any]:
    """Return this process's random states; sampling needs none, but a user's reward head may."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
