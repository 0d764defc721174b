"""A process that dies while it reads a checkpoint, and a clock that is set back: nothing is lost or
decided by them.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from harness.forked import run_module
from harness.processes import environment
from harness.runs import BASE, FOUR, adding, assert_same, differences, fit, parameters, rows, saving

EVERY = saving(every=1)


class KilledWhileReading(Callback):
    """Dies in the process's n-th reading of a checkpoint, with the file open."""

    def __init__(self, reading: int):
        self.left, self.load = reading, torch.load
        torch.load = self._load

    def _load(self, path: Any, *arguments: Any, **settings: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            file = path if hasattr(path, "read") else open(path, "rb")  # noqa: SIM115 - never closed
            file.read(1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.load(path, *arguments, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder, *FOUR, EVERY), folder


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_read_costs_nothing(tmp_path, whole):
    """In the first reading, which looks whether it is good, and in the second, which loads it."""
    fit(tmp_path, *FOUR, EVERY, "--trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")}
    assert before
    given = ["fit", *BASE, f"--trainer.default_root_dir={tmp_path}", *FOUR, EVERY]
    for reading in (1, 2):
        kill = adding("test_reading_and_clock.KilledWhileReading", reading=reading)
        killed = run_module(
            "rlif_lightning",
            [*given, kill, "--ckpt_path=auto"],
            environment(),
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")} == before
    resumed = fit(tmp_path, *FOUR, EVERY, "--ckpt_path=auto")
    assert_same(parameters(whole[0]), parameters(resumed))
    assert differences(rows(whole[1]), rows(tmp_path)) == []


@pytest.mark.slow
def test_a_clock_that_runs_backwards_decides_nothing(tmp_path, whole, monkeypatch):
    """The wall clock, of this process only: an hour back at each look."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    fit(tmp_path, *FOUR, EVERY, "--trainer.max_epochs=1")
    for path in tmp_path.rglob("*.ckpt"):
        os.utime(path, (0, 0))  # as a clock that was wrong wrote them
    resumed = fit(tmp_path, *FOUR, EVERY, "--ckpt_path=auto")
    assert int(resumed.model.num_rollouts) == int(whole[0].model.num_rollouts)
    assert_same(parameters(whole[0]), parameters(resumed))
    assert differences(rows(whole[1]), rows(tmp_path)) == []
