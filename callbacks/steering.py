"""How a callback changes a run: scales a setting, keeps snapshots, goes back to one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rlif_lightning.learning.optimizer import starting_rate
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.running.checkpoint_faults import why_unusable
from rlif_lightning.running.checkpoint_files import write_checkpoint
from rlif_lightning.running.leftovers import remove_other_snapshots
from rlif_lightning.running.own_files import (
    OwnFiles,
    copy_in,
    disk_errors_printed,
    locate,
    own_files,
)
from rlif_lightning.running.run_checkpoints import run_checkpoints


def read_setting(trainer: Trainer, module: RLIFModule, name: str) -> float:
    """Return a setting as it is now.

    There are ``learning_rate``, ``objective.<field>``, ``rewards.<head>.weight`` and, for each name
    in a head's ``scalable``, ``rewards.<head>.<name>``.

    Raises:
        ValueError: no such setting, or one that is not a number; names those that exist.
    """
    known = {"learning_rate": starting_rate(module.make_optimizer)}
    if trainer.optimizers:
        known["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
    for field in fields(module.objective):
        value = getattr(module.objective, field.name)
        if isinstance(value, (int, float)):
            known[f"objective.{field.name}"] = value
    for head, weight in zip(module.rewards.names, module.rewards.weights.tolist(), strict=True):
        known[f"rewards.{head}.weight"] = weight
        scored_by: Any = module.rewards.heads[head]
        known |= {f"rewards.{head}.{each}": getattr(scored_by, each) for each in scored_by.scalable}
    if name not in known:
        raise ValueError(f"scale names {name!r}; settings that can be scaled: {', '.join(known)}")
    return float(known[name])


def scale_setting(trainer: Trainer, module: RLIFModule, name: str, factor: float) -> None:
    """Multiply a setting (:func:`read_setting`) from now on; schedules keep their shape."""
    if name == "learning_rate":
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]
        for group in (
            group for optimizer in trainer.optimizers for group in optimizer.param_groups
        ):
            group["lr"] *= factor
            if "initial_lr" in group:  # without a schedule there is none
                group["initial_lr"] *= factor
        return
    value = read_setting(trainer, module, name) * factor
    kind, _, rest = name.partition(".")
    if kind == "objective":
        module.objective = replace(module.objective, **{rest: value})
    elif rest.endswith(".weight"):
        module.rewards.set_weight(rest.removesuffix(".weight"), value)
    else:
        head, _, field = rest.partition(".")
        setattr(module.rewards.heads[head], field, value)


def check_scale(
    trainer: Trainer, module: RLIFModule, scale: Mapping[str, float], times: int
) -> None:
    """Refuse factors that could not be applied ``times`` times, or that would change nothing.

    Raises:
        ValueError: names the setting and the remedy.
    """
    for name, factor in scale.items():
        value = read_setting(trainer, module, name)
        if value == 0 or factor == 1:
            raise ValueError(
                f"scale.{name}={factor} changes nothing: the setting is {value} and is multiplied"
            )
        if name.startswith("objective."):
            replace(module.objective, **{name.removeprefix("objective."): value * factor**times})


class Snapshots:
    """The last two snapshots of policy and optimiser, as checkpoints in the run's folder.

    There are two because a symptom shows some rollouts after it began; going back takes the older
    one. Checkpoints of the run name snapshots, so a snapshot that is out of use is kept until every
    older checkpoint is gone. A run that was started from another run's checkpoint copies that run's
    snapshots under names of its own.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[int, Path]] = []
        self.dropped: list[tuple[int, Path]] = []  # out of use since this rollout
        self._own: OwnFiles | None = None
        self._loaded: dict[str, list[tuple[int, str]]] | None = None

    def settle(self, trainer: Trainer) -> None:
        """Find the snapshots that a checkpoint named (a collective).

        If one is missing or truncated, none is used.
        """
        self._own = own = own_files(trainer)
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        named = {
            key: [(number, locate(name, own.source_folder)) for number, name in loaded[key]]
            for key in loaded
        }
        faults = [f"{path}: {fault}" for _, path in named["taken"] if (fault := _fault(path))]
        if faults:
            warnings.warn(f"snapshots are taken anew, as of now: {'; '.join(faults)}", stacklevel=2)
        taken = (
            []
            if faults
            else [(rollout, path) for rollout, path in named["taken"] if path is not None]
        )
        self.dropped = [
            (since, path) for since, path in named["dropped"] if path is not None and own.owns(path)
        ]
        foreign = {path for _, path in taken if not own.owns(path)}
        used = {path for snapshots in named.values() for _, path in snapshots if path is not None}
        all_process_attempt(
            lambda: _take_in(own, foreign, used) if trainer.is_global_zero else None
        )
        self.taken = [
            (rollout, own.adopt(path) if path in foreign else path) for rollout, path in taken
        ]

    def take(self, trainer: Trainer, module: RLIFModule) -> None:
        """Save the run as it is now (a collective), and drop all but the last two snapshots."""
        rollout = int(module.num_rollouts)
        self._own = own_files(trainer)
        path = self._own.folder / "guard" / f"rollout={rollout}.ckpt"
        write_checkpoint(trainer, path)
        self.taken.append((rollout, path))
        self._drop(trainer, rollout, self.taken[:-2])
        self.taken = self.taken[-2:]

    def _drop(self, trainer: Trainer, rollout: int, snapshots: list[tuple[int, Path]]) -> None:
        self.dropped += [(rollout, path) for _, path in snapshots]
        oldest = min([rollout, *(callback.oldest for callback in run_checkpoints(trainer))])
        for since, path in self.dropped:
            if since <= oldest and trainer.is_global_zero:
                own_files(trainer).remove(path)
        self.dropped = [(since, path) for since, path in self.dropped if since > oldest]

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshots' names."""
        if self._own is None:
            return self._loaded or {"taken": [], "dropped": []}
        name = self._own.name
        return {
            "taken": [(rollout, name(path)) for rollout, path in self.taken],
            "dropped": [(since, name(path)) for since, path in self.dropped],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the same snapshots, once :meth:`settle` has found them."""
        self._loaded = {key: list(state_dict[key]) for key in ("taken", "dropped")}

    def restore(self, trainer: Trainer, module: RLIFModule) -> int:
        """Restore policy, optimiser, heads and prompt table from the older snapshot (a collective).

        The count of rollouts goes on, so that new samples are drawn. The schedule of the learning
        rate goes on as well: it follows the trainer's count of optimiser steps. No group is
        replayed that was drawn before: those of the rollouts that are undone belong to the policy
        that is left behind, and those of the snapshot are too old by the count of rollouts.

        Returns:
            The snapshot's rollout.
        """
        count, (rollout, path) = int(module.num_rollouts), self.taken[0]
        self._drop(trainer, count, self.taken[1:])
        self.taken = self.taken[:1]
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        arguments = [_arguments(trainer.optimizers[0], group) for group in groups]
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        trainer.strategy.load_model_state_dict(checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, kept in zip(groups, arguments, strict=True):
            group.update(kept)
        module.get_buffer("num_rollouts").fill_(count)
        module.engine.discard_ahead()  # another policy drew it
        module.prompt_table.load_state_dict(checkpoint.get("prompt_table"))
        if module.replay_buffer is not None:
            module.replay_buffer.clear()
        return rollout


def _arguments(optimizer: Any, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's arguments of now, not of the snapshot: a resumed run may have others.

    Counters that some classes keep in their groups are no arguments: they belong to the state.
    """
    known = {*inspect.signature(type(optimizer)).parameters, "initial_lr"} - {"params"}
    return {name: value for name, value in group.items() if name in known}


def _fault(path: Path | None) -> str | None:
    return "its name is none of a snapshot" if path is None else why_unusable(path)


def _take_in(own: OwnFiles, foreign: set[Path], used: set[Path]) -> None:
    """Give another run's snapshots names of this run, and remove those that nothing names."""
    for path in foreign:
        copy_in(path, own.adopt(path))
    with disk_errors_printed("snapshots of an earlier process could not be removed"):
        remove_other_snapshots(own, used | {own.adopt(path) for path in foreign})
