"""A disk without room: what a run says and how it ends, by a limit on the size of a file that a
process may write.
"""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks.completion_writer import write_records
from harness.processes import two_ranks
from harness.runs import ONE, TINY, fit, saving
from rlif_lightning.running.checkpoint_files import CheckpointFile, unwritten, write_together
from rlif_lightning.running.events import read_events

UNLIMITED = resource.getrlimit(resource.RLIMIT_FSIZE)[1]  # what this process may have at most


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, a longer file raises as a full disk does, with another error number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, UNLIMITED))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))


class FullAtTheEnd(Callback):
    """From the end of training on, a file may have ``size`` bytes."""

    def __init__(self, size: int = 2**19):
        self.size = size

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, UNLIMITED))


class NoRoom(Callback):
    """Stands for whatever of a run writes a file."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left", "notes.txt")


def full_at_the_end(size: int, *after: str) -> list[str]:
    full = {"class_path": "test_full_disk.FullAtTheEnd", "init_args": {"size": size}}
    return [
        f"--trainer.callbacks+={json.dumps(full)}",
        *(f"--trainer.callbacks+={name}" for name in after),
    ]


def test_an_export_without_room_names_its_folder(tmp_path):
    try:
        with pytest.raises(
            RuntimeError, match=r"HFExporter could not write .*/export/last.*File too large"
        ):
            fit(tmp_path, *TINY, *ONE, *full_at_the_end(2**19, "HFExporter"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))


@pytest.mark.full  # one process: above; test_faults.py ends both by an error
def test_an_export_without_room_ends_both_processes(tmp_path):
    done = two_ranks(tmp_path, *full_at_the_end(2**19, "HFExporter"))
    assert done.returncode not in (0, 75)
    assert done.stderr.count("HFExporter could not write") >= 2  # one of each process
    assert "process 0 failed: SafetensorError" in done.stderr


def test_a_checkpoint_without_room_says_what_was_wrong_and_what_is_whole(tmp_path):
    big = {"weights": torch.zeros(2**18)}
    path = tmp_path / "checkpoints" / "rollout=000002.ckpt"
    with (
        files_of_at_most(2**19),
        pytest.raises(OSError, match=r"File too large.*rollout=000002.ckpt"),
    ):
        CheckpointFile().save_checkpoint(big, path)
    assert list(path.parent.iterdir()) == []
    assert "nothing was saved in" in str(unwritten(path, "full"))
    CheckpointFile().save_checkpoint(big, path.with_name("rollout=000001.ckpt"))
    assert str(unwritten(path, "full")).endswith(
        "rollout=000001.ckpt, saved before it, is whole; make room, and go on from it"
    )


def test_whatever_a_checkpoint_writer_raises_is_told_with_the_path(tmp_path):
    path = tmp_path / "rollout=000001.ckpt"
    io = CheckpointFile()
    with io.deferring():
        io.save_checkpoint(
            {"state": lambda: None}, path
        )  # pickle's own error, which is neither of the two above
    assert io.failure is not None
    for error in (TypeError("cannot pickle"), OSError("full")):
        with pytest.raises(
            RuntimeError, match=rf"{path.name} could not be written \({type(error).__name__}"
        ):
            write_together(path, lambda error=error: raise_(error))


def raise_(error: Exception) -> None:
    raise error


def test_a_checkpoint_without_room_in_a_run(tmp_path):
    with (
        files_of_at_most(2**19),
        pytest.raises(RuntimeError, match=r"could not be written \(OSError.*nothing was saved in"),
    ):
        fit(tmp_path, *TINY, *ONE, saving(every=1))


@pytest.mark.slow
def test_a_report_without_room_fails_no_finished_run(tmp_path, capfd):
    try:
        fit(tmp_path, *full_at_the_end(2**12, "RunReport"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
    folder = tmp_path / "version_0"
    assert f"warning: the report of {folder} could not be written" in capfd.readouterr().err
    assert not (folder / "report.html").exists()
    assert not list(folder.rglob("*.unfinished"))
    assert read_events(folder)[-1]["values"]["exit_code"] == 0


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_completions_without_room_name_their_file(tmp_path, form):
    record = {"index": 0, "completion": "x" * 2**16, "scores": {"vote": 1.0}}
    with files_of_at_most(2**10), pytest.raises(OSError, match=f"completions.*{form}"):
        write_records(tmp_path, [record], form, "rollout-000001", "")
    assert not list(Path(tmp_path).rglob("*.unfinished"))


def test_a_disk_that_takes_no_more_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, *TINY, *ONE, "--trainer.callbacks+=test_full_disk.NoRoom")
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert (
        "error: [Errno 28] No space left: 'notes.txt'; make room, and repeat with --ckpt_path=auto"
        in lines
    )


def test_a_place_where_nothing_can_be_written_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "file" / "runs")
    assert stopped.value.code == 2
    assert "file' is no folder; give another folder" in capsys.readouterr().err
