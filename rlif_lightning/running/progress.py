"""The progress of a run on one line of a terminal, counted in rollouts."""

from __future__ import annotations

import math
import shutil
import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from rlif_lightning.running.planned import planned_of

LINES = 10  # of a run whose output goes into a file
BAR = 6  # characters of the bar itself


class RolloutBar(ProgressBar):
    """A line with the rollouts done and planned, the time left, and three figures.

    The figures are the first reward's mean, the policy's entropy and the completions' length. In a
    terminal the line is drawn over; in a file ten lines are written over a run. RLIFTrainer adds
    this bar where no other one is given and ``enable_progress_bar`` is not false.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True
        self.planned: int | None = None
        self.first, self.began, self.written = 0, 0.0, 0

    def disable(self) -> None:
        """Print nothing, as in all processes but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self.is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._end_line()
        print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note where the run begins."""
        self.planned = planned_of(trainer, pl_module)
        self.first, self.began, self.written = int(pl_module.num_rollouts), time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the line after a rollout."""
        done = int(pl_module.num_rollouts)
        seconds, shown = self._seconds(done), figures(trainer, pl_module)
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._draw(progress_line(done, self.planned, seconds, shown, width))
            if done == self.planned:  # before Lightning says why it stops
                self._end_line()
        elif self.is_enabled and self._is_due(done):
            print(progress_line(done, self.planned, seconds, shown), flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the last line where it is."""
        if int(pl_module.num_rollouts) != self.planned:
            self._end_line()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the last line where it is."""
        self._end_line()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw how far an evaluation is, in a terminal."""
        self._draw_share("validation", batch_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Make room for what is printed next."""
        self._wipe()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw how far a test is, in a terminal."""
        self._draw_share("test", batch_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Make room for what is printed next."""
        self._wipe()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw how far a prediction is, in a terminal."""
        self._draw_share("predict", batch_idx, trainer.num_predict_batches)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Make room for what is printed next."""
        self._wipe()

    @property
    def _is_terminal(self) -> bool:
        return self.is_enabled and sys.stdout.isatty()

    def _seconds(self, done: int) -> float:
        return (time.monotonic() - self.began) / max(done - self.first, 1)

    def _is_due(self, done: int) -> bool:
        """Return whether a file gets a line: after each tenth of the run, and at its end."""
        if self.planned is None:
            return done % LINES == 0
        tenth = done * LINES // max(self.planned, 1)
        is_due, self.written = tenth > self.written, max(tenth, self.written)
        return is_due

    def _draw_share(self, name: str, batch_idx: int, batches: list[int | float]) -> None:
        if self._is_terminal:
            self._draw(f"{name} {batch_idx + 1}/{sum(batches):.0f}")

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r\x1b[K{text[:width]}")
        sys.stdout.flush()

    def _wipe(self) -> None:
        if self._is_terminal:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()

    def _end_line(self) -> None:
        if self._is_terminal:
            sys.stdout.write("\n")
            sys.stdout.flush()


def progress_line(
    done: int,
    planned: int | None,
    seconds: float,
    shown: dict[str, float] | None = None,
    width: int = 79,
) -> str:
    """Return the line; figures that do not fit are left out.

    Args:
        done: rollouts done.
        planned: of the whole run; None = not known.
        seconds: of one rollout.
        shown: name -> figure, the most important one first.
        width: most characters.

    Example:
        >>> progress_line(12, 40, 0.81, {"vote": 0.5062, "entropy": 0.2031, "length": 14.586})
        'rollout 12/40 █▊     0.81 s, 0:23 left  vote 0.506  entropy 0.203  length 14.6'
    """
    if planned is None:
        line = f"rollout {done}  {seconds:.3g} s"
    else:
        eighths = min(done * BAR * 8 // max(planned, 1), BAR * 8)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8] * (eighths < BAR * 8)
        left = clock(max(planned - done, 0) * seconds)
        line = f"rollout {done}/{planned} {bar:<{BAR}} {seconds:.3g} s, {left} left"
    for name, value in (shown or {}).items():
        part = f"  {name} {value:.3g}"
        line += part if len(line) + len(part) <= width else ""
    return line


def clock(seconds: float) -> str:
    """Return a time as h:mm:ss, or m:ss below an hour.

    Example:
        >>> clock(65), clock(3661)
        ('1:05', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figures(trainer: Any, module: Any) -> dict[str, float]:
    """Return the figures of the last rollout that the line shows."""
    first = next(
        (name for name, reward in module.rewards.settings.items() if reward.weight), "reward"
    )
    names = {
        first[:12]: f"reward/{first}/mean",
        "entropy": "policy/entropy",
        "length": "rollout/length",
    }
    logged = {name: trainer.callback_metrics.get(key) for name, key in names.items()}
    known = {name: float(value) for name, value in logged.items() if value is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)}
