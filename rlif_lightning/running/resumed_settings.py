"""ResumedSettings: other settings than the checkpoint's are listed, and applied or refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.lr_scheduler import LambdaLR

from rlif_lightning.data.loaders import continued_place
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.replay import why_empty
from rlif_lightning.running.checkpoint_faults import expected_of, model_misfit, read_rest
from rlif_lightning.running.events import record_event
from rlif_lightning.running.former_settings import present_settings
from rlif_lightning.running.lightning_internals import configured_optimizer
from rlif_lightning.running.run_settings import KEY, run_settings
from rlif_lightning.running.setting_changes import (
    OPTIMIZER,
    PROMPTS_PER_ROLLOUT,
    SCHEDULE,
    Change,
    changes,
    group_rate,
    outcome,
    refusal,
    refused_changes,
)

LENGTH = (SCHEDULE, "trainer.max_steps")
KEPT_FLAGS = ("params", "lr", "initial_lr", "fused", "foreach", "capturable")


class ResumedSettings(Callback):
    """Keeps the decisive settings in every checkpoint, and compares them when a run resumes.

    RLIFTrainer adds it to every run. Each difference is listed with what happens with it, before
    the model is loaded, on the first process's terminal and as an event ``settings``. A new
    learning rate is multiplied by whatever callbacks had multiplied the old one by.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] | None = None
        self.old: dict[str, Any] = {}
        self.changes: list[Change] = []
        self.said: list[tuple[str, dict[str, float | str]]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Compare, list what differs, and refuse what cannot be applied.

        Raises:
            ValueError: names the settings, both values and the way out.
        """
        if stage != "fit":
            return
        self.settings, self.changes, self.said = run_settings(trainer, pl_module), [], []
        source: Path | None = getattr(trainer, "source", None)
        if source is None or not source.exists():  # Lightning refuses the latter
            return
        saved = read_rest(source)
        if not isinstance(saved.get(KEY), dict):
            self._say(trainer, f"{source} was saved without settings: they cannot be compared", {})
            return
        self.old = present_settings(saved[KEY])
        self.changes = changes(self.old, self.settings)
        self._refuse(source, pl_module)
        for change in self.changes:
            old, new = change.shown()
            values = {"name": change.name, "old": old, "new": new}
            self._say(trainer, f"{change} ({self._outcome(change, saved, trainer)})", values)

    def _say(self, trainer: Trainer, text: str, values: dict[str, Any]) -> None:
        self.said.append((text, values))
        if trainer.is_global_zero:
            print(f"resumed: {text}", flush=True)

    def _refuse(self, source: Path, module: Any) -> None:
        assert self.settings is not None
        misfit = None
        if any(change.name.startswith("model.") for change in self.changes):
            misfit = model_misfit(source, expected_of(module))
        refused = refused_changes(self.changes, self.old, self.settings, misfit is not None)
        if refused:
            raise ValueError(f"ckpt_path={source}: {refusal(refused, source)}")

    def _outcome(self, change: Change, saved: dict[str, Any], trainer: Any) -> str:
        sizes = _sizes(trainer, saved)
        if change.name != PROMPTS_PER_ROLLOUT or sizes is None:
            return outcome(change)
        place = saved[type(trainer.datamodule).__qualname__]["train"]
        size = place["num_prompts"]
        drawn, left_out = continued_place(place["batches_drawn"], size, *sizes)
        epoch, batch = divmod(drawn, size // sizes[1])
        where = f"batch {batch + 1} of epoch {epoch + 1}"
        return f"the same order goes on with {where}; {_problems(left_out)}"

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Move Lightning's place in the epoch, where batches have another size.

        A replay buffer that begins empty is announced.
        """
        if pl_module.replay_buffer is not None and trainer.state.fn == TrainerFn.FITTING:
            empty = why_empty(checkpoint.get("replay"), pl_module.group_size)
            if empty is not None:
                self._say(trainer, empty, {})
        sizes = _sizes(trainer, checkpoint)
        split = None if sizes is None else trainer.datamodule.split("train")
        if sizes is None or split is None or sizes[0] == sizes[1]:
            return
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        old, new = (
            _epoch_length(len(split) // size, trainer.limit_train_batches) for size in sizes
        )
        reached = -(-current["ready"] * sizes[0] // sizes[1])
        is_over = current["ready"] >= old
        place = new if is_over else min(reached, new - 1) if current["ready"] else 0
        current |= dict.fromkeys(current, place)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Apply the optimiser's arguments, which the checkpoint has replaced; write the events."""
        if any(change.begins_with((OPTIMIZER, *LENGTH)) for change in self.changes):
            self._apply(trainer, pl_module)
        if trainer.fast_dev_run:
            return
        for text, values in self.said:
            record_event(trainer, pl_module, "run", "settings", text, values)

    def _apply(self, trainer: Any, module: Any) -> None:
        fresh = configured_optimizer(module)
        optimizer = trainer.optimizers[0]
        schedule = next((each.scheduler for each in trainer.lr_scheduler_configs), None)
        # Counters that some classes keep in their groups are no arguments.
        known = {*inspect.signature(type(optimizer)).parameters} - {*KEPT_FLAGS}
        for number, group in enumerate(optimizer.param_groups):
            new, rate = fresh.param_groups[number], group_rate(self.old, number)
            group |= {name: value for name, value in new.items() if name in known}
            before = group.get("initial_lr", group["lr"])
            # What callbacks had multiplied the checkpoint's learning rate by.
            factor = 1.0 if rate is None else before / rate
            base = new.get("initial_lr", new["lr"]) * factor
            if schedule is None:
                group["lr"] = base
                continue
            schedule.base_lrs[number] = group["initial_lr"] = base
            if isinstance(schedule, LambdaLR):
                group["lr"] = base * schedule.lr_lambdas[number](schedule.last_epoch)
            else:
                group["lr"] *= base / before

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Put the settings into the checkpoint."""
        found = run_settings(trainer, pl_module) if self.settings is None else self.settings
        checkpoint[KEY] = found


def _sizes(trainer: Any, checkpoint: dict[str, Any]) -> tuple[int, int] | None:
    """Return a rollout's prompts in the checkpoint and now; None where the data is not ours."""
    data = getattr(trainer, "datamodule", None)
    place = checkpoint.get(type(data).__qualname__, {}).get("train")
    if not isinstance(data, PromptData) or place is None:
        return None
    return place["prompts_per_rollout"], data.prompts_per_rollout


def _epoch_length(length: int, limit: int | float) -> int:
    return int(length * limit) if isinstance(limit, float) else min(length, limit)


def _problems(left_out: int) -> str:
    if not left_out:
        return "no problem is skipped or repeated"
    return f"{abs(left_out)} problems of its epoch are {'skipped' if left_out > 0 else 'repeated'}"
