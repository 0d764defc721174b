"""Checkpoints as files: written whole or not at all, examined before they are trusted.

A checkpoint is one file, or a folder of shards under a strategy that shards. It is written under a
name of its own that nothing reads, forced to the disk and renamed, so that whatever has a
checkpoint's name is complete, also after a power cut. Loading runs no code: only tensors and plain
values are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer

from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.running.checkpoint_names import (
    SUFFIX,
    place_of,
    remove_checkpoint,
    unfinished_name,
)
from rlif_lightning.whole_files import force_to_disk, replaced

FILES = "files.json"  # in a folder of shards: name -> size of each file


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint's file whole or not at all, without a second copy of it in memory."""

    def __init__(self) -> None:
        self.deferred = False
        self.failure: BaseException | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write under a temporary name, force to the disk, rename.

        Raises:
            OSError: the disk did not take it; names the path. What was written is removed.
            Exception: whatever torch and pickle raise where something cannot be written at all.
        """
        try:
            self._write(checkpoint, Path(path))
        except Exception as error:  # another process waits to hear of it, whatever its class
            if not self.deferred:
                raise
            self.failure = error

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                replaced(path, unfinished_name(path), durable=True) as unfinished,
                unfinished.open("wb") as file,
            ):
                torch.save(checkpoint, file)
        except BaseException as error:
            if (said := _disk_error(error)) is not None:
                raise OSError(said.errno, said.strerror, str(path)) from error
            raise

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values, never anything that runs."""
        return torch.load(path, map_location=map_location, weights_only=True)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Keep an error in :attr:`failure` instead of raising it in the one process that writes."""
        self.deferred, self.failure = True, None
        try:
            yield
        finally:
            self.deferred = False


def write_checkpoint(trainer: Trainer, path: Path) -> None:
    """Save the run as it is now (a collective).

    Raises:
        RuntimeError: in every process, if it could not be written; names the path.
    """
    io = trainer.strategy.checkpoint_io
    if type(io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = io = CheckpointFile()
    with io.deferring() if isinstance(io, CheckpointFile) else nullcontext():
        trainer.save_checkpoint(path, weights_only=False)
    failure = trainer.strategy.broadcast(_message_of(getattr(io, "failure", None)))
    if failure is not None:
        raise unwritten(path, failure)


def _message_of(failure: BaseException | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {failure}"


def unwritten(path: Path, failure: str) -> RuntimeError:
    """Return what every process raises for a checkpoint that could not be written."""
    others = [other for other in path.parent.glob(f"*{SUFFIX}") if other.name != path.name]
    newest = max(others, key=place_of, default=None)
    left = "nothing was saved in its folder before it"
    if newest is not None:
        left = f"{newest}, saved before it, is whole; make room, and go on from it"
    return RuntimeError(f"the checkpoint {path} could not be written ({failure}); {left}")


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return the disk's own error, which torch covers with one about places in its archive."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error


def write_together(path: Path, write: Callable[[], Any]) -> None:
    """Let every process write its part of a checkpoint (a collective).

    Raises:
        RuntimeError: in every process, if one could not; names the path.
    """

    from torch.distributed.checkpoint.api import CheckpointException

    def part() -> None:
        try:
            write()
        except CheckpointException as error:  # of torch's sharded writing; no Exception to Python
            raise next(iter(error.failures.values()))[0] from None

    try:
        all_process_attempt(part)
    except Exception as error:
        raise unwritten(path, str(_message_of(error))) from error


def finish_folder(unfinished: Path, path: Path) -> None:
    """List the written shards with their sizes, force all to the disk, and name the folder."""
    sizes = {
        str(file.relative_to(unfinished)): file.stat().st_size
        for file in unfinished.rglob("*")
        if file.is_file()
    }
    (unfinished / FILES).write_text(json.dumps(sizes, indent=1))
    for file in [*unfinished.rglob("*"), unfinished]:
        force_to_disk(file)
    remove_checkpoint(path)
    os.replace(unfinished, path)
    force_to_disk(path.parent)
