"""Signals: the step is finished and saved, the exit code says so, and the run goes on as if nothing
had been.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from harness.launches import resumed_and_whole
from harness.processes import two_ranks
from harness.runs import BASE, FOUR, assert_same, differences, fit, parameters, rows
from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.events import read_events
from rlif_lightning.running.stop_signals import INTERRUPTED, TRY_AGAIN


class Signalled(Callback):
    """Sends one process a signal in the middle of rollout 2, while its first gradient is
    computed.
    """

    def __init__(self, number: int, times: int = 1, rank: int = 0):
        self.number, self.times, self.rank = number, times, rank

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == 1 and trainer.global_rank == self.rank:
            hook = next(pl_module.policy.parameters()).register_hook(
                lambda gradient: self._send(hook)
            )

    def _send(self, hook: Any) -> None:
        hook.remove()
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


def signalled(number: int, times: int = 1, rank: int = 0) -> str:
    arguments = f'{{"number": {int(number)}, "times": {times}, "rank": {rank}}}'
    return (
        '--trainer.callbacks+={"class_path": "test_stopping.Signalled", "init_args":'
        f" {arguments}}}"
    )


@pytest.mark.parametrize(
    ("number", "code", "goes_on"),
    [
        (signal.SIGTERM, TRY_AGAIN, False),
        (signal.SIGINT, INTERRUPTED, False),
        # test_run.py resumes from a checkpoint that another callback saved.
        pytest.param(signal.SIGTERM, TRY_AGAIN, True, marks=pytest.mark.full),
        pytest.param(signal.SIGUSR1, TRY_AGAIN, False, marks=pytest.mark.full),
    ],
)
def test_a_signal_ends_with_the_step_saved_and_its_exit_code(
    tmp_path, capfd, request, number, code, goes_on
):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as info:
        fit(tmp_path / "lives", *FOUR, signalled(number))
    assert info.value.code == code == {TRY_AGAIN: 75, INTERRUPTED: 130}[code]
    assert signal.getsignal(number) == before
    (path,) = find_checkpoints(tmp_path / "lives")
    assert (
        path.name == "rollout=000002.ckpt"
    )  # the checkpoint is due every ten rollouts: the signal made it
    (end,) = [
        event["values"]
        for event in read_events(tmp_path / "lives" / "version_0")
        if event["kind"] == "end"
    ]
    assert (end["reason"], end["exit_code"]) == ("signal", code)
    told = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: finishing the step" in told
    assert f"stopped on request after rollout 2, saved as {path}" in told
    if goes_on:
        long_run = request.getfixturevalue("long_run")
        resumed = fit(tmp_path / "lives", *FOUR, "--ckpt_path=auto")
        assert_same(long_run[0], parameters(resumed))
        assert differences(rows(long_run[1]), rows(tmp_path / "lives")) == []


def test_a_second_control_c_does_not_wait(tmp_path):
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, *FOUR, signalled(signal.SIGINT, times=2))
    assert info.value.code == INTERRUPTED
    assert not find_checkpoints(tmp_path)


@pytest.mark.slow
def test_before_training_a_signal_ends_the_process_at_once_with_the_same_code(tmp_path):
    command = [
        sys.executable,
        "-m",
        "rlif_lightning",
        "fit",
        *BASE,
        f"--trainer.default_root_dir={tmp_path}",
    ]
    command += ["--ckpt_path=auto", *FOUR, "--trainer.max_epochs=1000"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Seed set to" in line:  # building has begun, training has not
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=900)
    assert process.returncode == TRY_AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_signal_to_one_of_two_ranks_stops_both_and_saves(tmp_path, rank):
    done = two_ranks(tmp_path, signalled(signal.SIGTERM, rank=rank))
    assert done.returncode == TRY_AGAIN, done.stderr[-2000:]
    assert [path.name for path in find_checkpoints(tmp_path)] == ["rollout=000002.ckpt"]


@pytest.mark.full  # test_lost_process.py: the one that is left
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_when_one_of_two_ranks_is_killed_the_other_ends_and_says_so(tmp_path, rank):
    every = "--trainer.callbacks+={class_path: RunCheckpoints, init_args: {every: 1}}"
    killed = two_ranks(tmp_path / "lives", every, signalled(signal.SIGKILL, rank=rank))
    assert killed.returncode not in (0, TRY_AGAIN)
    assert "remote worker" in killed.stderr  # gloo's words about the lost connection
    (end,) = [
        event for event in read_events(tmp_path / "lives" / "version_0") if event["kind"] == "end"
    ]
    assert (end["values"]["reason"], end["values"]["exit_code"]) == (
        "lost_process",
        1,
    )  # written by the one that is left
    assert f"process {rank} (pid " in end["message"]
    assert f"error: process {rank} (pid " in killed.stderr
    assert "reward head" not in killed.stderr
    assert [path.name for path in find_checkpoints(tmp_path / "lives")] == ["rollout=000001.ckpt"]
    if rank == 0:  # the full tier goes on, with the other rank; so does test_faults.py in this one
        return
    resumed_and_whole(tmp_path, every)
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []
