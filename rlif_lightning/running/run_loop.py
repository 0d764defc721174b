"""Lightning's loops with one more hook at the end of a step, and a check of the callbacks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from rlif_lightning.running.endings import Ending, ending_of, remedy
from rlif_lightning.running.lightning_internals import FitLoop, TrainingEpochLoop
from rlif_lightning.running.own_files import read_mark
from rlif_lightning.running.run_checkpoints import run_checkpoints


class RunLoop(FitLoop):
    """Lightning's loop over epochs, which makes no step where a resumed run is over."""

    def run(self) -> None:
        """Run as Lightning does; where the run is over, make no step."""
        saves = run_checkpoints(self.trainer)
        if any([callback.stays_over(self.trainer) for callback in saves]):
            self.trainer.should_stop = True
        self.setup_data()
        own: Any = getattr(self.trainer, "own_files", None)
        nothing = not self.max_batches or self.trainer.limit_train_batches == 0
        if own is None or own.source is None or nothing or not self.skip:
            return super().run()
        ending = next(
            (Ending(**callback.over) for callback in saves if callback.over),
            ending_of(self.trainer),
        )
        text = (
            f"this run is over: {ending.message}; nothing is trained;"
            f" {remedy(ending.reason, ending.by)}"
        )
        rank_zero_info(text)
        if not self.trainer.strategy.broadcast(read_mark(own.source_folder).get("ended")):
            self.on_run_start()
            self.on_run_end()


class EpochLoopWithStepEnd(TrainingEpochLoop):
    """Lightning's loop over steps with a hook when a step, its logging and its validation are over.

    Lightning has no hook there: ``on_train_batch_end`` comes before the step's figures are
    logged and before its validation, so a run that went on from a checkpoint made there would lack
    both.
    """

    def on_advance_end(self, data_fetcher: Any) -> None:
        """End a step as Lightning does, then call the run's checkpoints."""
        if self._skip_next_val:
            # Resumed where a validation had been made: Lightning passes here without a step, and
            # would count one.
            self._skip_next_val = False
            return
        super().on_advance_end(data_fetcher)
        module: Any = self.trainer.lightning_module
        for callback in run_checkpoints(self.trainer):
            callback.on_step_end(self.trainer, module)


def refuse_duplicate_callbacks(callbacks: list[Callback]) -> None:
    """Refuse two callbacks whose states would be one entry of a checkpoint.

    Raises:
        ValueError: names them and the remedy.
    """
    keys = Counter(
        callback.state_key for callback in callbacks if is_overridden("state_dict", callback)
    )
    if twins := sorted(key for key, count in keys.items() if count > 1):
        raise ValueError(
            f"trainer.callbacks={', '.join(twins)}: more than once; leave out one config or"
            " `callbacks+` that adds it,"
            " or change the one that is there (--trainer.callbacks.ARGUMENT=... sets the last"
            " one's)"
        )
