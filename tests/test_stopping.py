"""Signals: the step is finished and saved, the exit code says so, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from test_checkpoints import LONG
from test_resume import differences, rows
from test_run import BASE, assert_same, fit, parameters

from rlif_lightning.checkpoint_files import find_checkpoints
from rlif_lightning.stopping import INTERRUPTED, TRY_AGAIN


class Signalled(Callback):
    """Sends this process a signal in the middle of rollout 2, while its first gradient is computed."""

    def __init__(self, number: int, times: int = 1):
        self.number, self.times = number, times

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if int(pl_module.num_rollouts) == 1:
            hook = next(pl_module.policy.parameters()).register_hook(lambda gradient: self._send(hook))

    def _send(self, hook: Any) -> None:
        hook.remove()
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


def signalled(number: int, times: int = 1) -> str:
    arguments = f'{{"number": {int(number)}, "times": {times}}}'
    return f'--trainer.callbacks+={{"class_path": "test_stopping.Signalled", "init_args": {arguments}}}'


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, TRY_AGAIN), (signal.SIGUSR1, TRY_AGAIN), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_ends_with_the_step_saved_and_its_exit_code(tmp_path, capfd, number, code):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as info:
        fit(tmp_path / "lives", *LONG, signalled(number))
    assert info.value.code == code == {TRY_AGAIN: 75, INTERRUPTED: 130}[code]
    assert signal.getsignal(number) == before
    (path,) = find_checkpoints(tmp_path / "lives")
    assert path.name == "rollout=000002.ckpt"  # the checkpoint is due every ten rollouts: the signal made it
    told = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: finishing the step" in told
    assert f"stopped on request after rollout 2, saved as {path}" in told
    if number == signal.SIGTERM:
        whole, resumed = fit(tmp_path / "whole", *LONG), fit(tmp_path / "lives", *LONG, "--ckpt_path=auto")
        assert_same(parameters(whole), parameters(resumed))
        assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []


def test_a_second_control_c_does_not_wait(tmp_path):
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, *LONG, signalled(signal.SIGINT, times=2))
    assert info.value.code == 1  # Lightning's, after KeyboardInterrupt
    assert not find_checkpoints(tmp_path)


@pytest.mark.slow
def test_before_training_a_signal_ends_the_process_at_once_with_the_same_code(tmp_path):
    command = [sys.executable, "-m", "rlif_lightning", "fit", *BASE, f"--trainer.default_root_dir={tmp_path}"]
    command += ["--ckpt_path=auto", *LONG, "--trainer.max_epochs=1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert process.stderr is not None
    for line in process.stderr:
        if "Seed set to" in line:  # building has begun, training has not
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == TRY_AGAIN
