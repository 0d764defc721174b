"""A signal in the middle of an evaluation: of the first one inside a run, and of the one before
training.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from lightning.pytorch import Callback

from harness.runs import FOUR, adding, assert_same, differences, fit, parameters, rows
from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.events import read_events
from rlif_lightning.running.stop_signals import TRY_AGAIN

VALIDATING = ["--trainer.check_val_every_n_epoch=1", "--data.validation_prompts_per_batch=4"]


class SignalledInValidation(Callback):
    """Sends this process a signal as the first evaluation begins its second batch."""

    def __init__(self, number: int):
        self.number, self.sent = number, False

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *more: Any
    ) -> None:
        if batch_idx == 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
def test_in_the_first_evaluation_of_a_run_it_is_finished_and_saved(tmp_path):
    sending = adding(
        "test_stopping_in_validation.SignalledInValidation", number=int(signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as info:
        fit(tmp_path / "lives", *FOUR, *VALIDATING, sending)
    assert info.value.code == TRY_AGAIN
    (path,) = find_checkpoints(tmp_path / "lives")
    assert any(validation for _, validation in rows(tmp_path / "lives"))  # its figures are logged
    resumed = fit(tmp_path / "lives", *FOUR, *VALIDATING, "--ckpt_path=auto")
    whole = fit(tmp_path / "whole", *FOUR, *VALIDATING)
    assert int(path.stem.split("=")[1]) < int(whole.model.num_rollouts)
    assert_same(parameters(whole), parameters(resumed))
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []


def test_in_the_evaluation_before_training_it_ends_at_once(tmp_path):
    """Nothing is saved, since nothing is trained; the same command begins anew."""
    sending = adding(
        "test_stopping_in_validation.SignalledInValidation", number=int(signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, "--compare=true", *VALIDATING, sending)
    assert info.value.code == TRY_AGAIN
    assert not find_checkpoints(tmp_path)
    assert not [
        event
        for path in tmp_path.glob("version_*")
        for event in read_events(path)
        if event["kind"] == "end"
    ]
