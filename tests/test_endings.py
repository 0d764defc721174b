"""Every run ends with a reason: an event with the exit code, in the report and in `status`; what is
over stays over.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from harness.children import in_child
from harness.runs import BASE, FOUR, adding, assert_same, fit, parameters, saving
from rlif_lightning import cli
from rlif_lightning.learning.non_finite import NonFiniteGradient
from rlif_lightning.running import status
from rlif_lightning.running.checkpoint_names import find_checkpoints
from rlif_lightning.running.endings import ending_of_error
from rlif_lightning.running.events import append_event, read_events
from rlif_lightning.running.status import read_status

ROOT = Path(__file__).parent.parent


class StopsAt(Callback):
    """Any callback's own way to end a run."""

    def __init__(self, rollout: int):
        self.rollout = rollout

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == self.rollout:
            trainer.should_stop = True


class KilledAtTheEnd(Callback):
    """Dies in its ``on_train_end``, before the policy is exported, while a file is there."""

    def __init__(self, while_there: str):
        self.while_there = Path(while_there)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.while_there.exists():
            os.kill(os.getpid(), signal.SIGKILL)


def ends(folder: Path) -> list[tuple[str, int]]:
    """Reason and exit code of each event ``end`` of a version."""
    events = [event["values"] for event in read_events(folder) if event["kind"] == "end"]
    return [(values["reason"], values["exit_code"]) for values in events]


# Any value is above -1000, so that it stops after its first evaluation.
EARLY = [
    adding("EarlyStopping", monitor="val/entropy", mode="max", stopping_threshold=-1000.0),
    "--trainer.check_val_every_n_epoch=1",
]


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`"
)  # EarlyStopping is taken out at the end
@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "arguments", "told"),
    [
        ("early_stop", EARLY, "take EarlyStopping out, or name a checkpoint"),
        pytest.param(
            "stopped",
            [adding("test_endings.StopsAt", rollout=1)],
            "nothing is trained; name a checkpoint",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "max_steps",
            ["--trainer.max_steps=4"],
            "nothing is trained; raise trainer.max_steps",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_that_is_over_stays_over_and_says_why(tmp_path, caplog, reason, arguments, told):
    run = fit(tmp_path, *FOUR, saving(every=1), adding("RunReport"), *arguments)
    rollouts = int(run.model.num_rollouts)
    assert rollouts == {"early_stop": 2}.get(reason, 1)
    caplog.clear()
    again = fit(
        tmp_path, *FOUR, saving(every=1), adding("RunReport"), *arguments, "--ckpt_path=auto"
    )
    assert int(again.model.num_rollouts) == rollouts
    assert_same(parameters(run), parameters(again))
    assert "this run is over" in caplog.text
    assert told in caplog.text
    assert [ends(tmp_path / name) for name in ("version_0", "version_1")] == [
        [(reason, 0)],
        [(reason, 0)],
    ]
    page = (tmp_path / "version_0" / "report.html").read_text()
    assert re.search(
        rf"<b>Ended: {reason}</b> after rollout \d+ of \d+ planned \(exit code 0\)", page
    )
    found = read_status(tmp_path)
    assert found.end.startswith(f"{reason} (exit code 0) after rollout {rollouts}:")
    assert found.repeated.startswith("trains nothing and ends with exit code 0")
    assert found.lives == 2
    more = [*FOUR, saving(every=1), "--ckpt_path=auto"]  # without what ended it
    on = (
        fit(tmp_path, *more)
        if reason != "stopped"
        else fit(tmp_path, *FOUR, f"--ckpt_path={find_checkpoints(tmp_path)[0]}")
    )
    assert int(on.model.num_rollouts) == 4
    assert ends(tmp_path / "version_2") == [("finished", 0)]


@pytest.mark.full  # test_whole_files.py; what a repeated command does: below
def test_a_kill_in_the_final_export_costs_nothing(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    arguments = [
        *EARLY,
        *FOUR,
        saving(every=1),
        adding("test_endings.KilledAtTheEnd", while_there=str(mark)),
        adding("HFExporter"),
    ]
    given = ["fit", *BASE, f"--trainer.default_root_dir={tmp_path / 'lives'}", *arguments]
    code, printed = in_child(lambda: cli.main(given), tmp_path)
    assert code == -signal.SIGKILL, printed
    assert not (tmp_path / "lives" / "version_0" / "export").exists()
    found = read_status(tmp_path / "lives")
    assert found.end == "killed, or its machine was lost: no end was written"
    assert "finishes what was cut off after it" in found.repeated
    mark.unlink()
    again = fit(tmp_path / "lives", *arguments, "--ckpt_path=auto")
    whole = fit(tmp_path / "whole", *arguments)
    assert_same(parameters(whole), parameters(again))
    exported = [
        path / "export" / "last" / "model.safetensors"
        for path in (tmp_path / "lives" / "version_1", tmp_path / "whole" / "version_0")
    ]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert ends(tmp_path / "lives" / "version_1") == [("early_stop", 0)]


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (SystemExit(75), "signal", 75),
        (SystemExit(130), "signal", 130),
        (KeyboardInterrupt(), "signal", 130),
        (NonFiniteGradient("the gradient of rollout 2"), "non_finite_gradient", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory", 1),
        (
            RuntimeError("out of memory in a micro-batch of 4 tokens on one of several processes"),
            "memory",
            1,
        ),
        (MemoryError(), "memory", 1),
        (OSError("No space left on device"), "error", 1),
        (ValueError("a bug below"), "error", 1),
        (RuntimeError("Connection closed by peer [127.0.0.1]: a reward's own server"), "error", 1),
    ],
)
def test_every_exception_is_an_ending(error, reason, code):
    ending = ending_of_error(error)
    assert (ending.reason, ending.exit_code) == (reason, code)


def test_the_causes_of_an_error_count(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    lost = RuntimeError(
        "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2. Maybe a"
        " remote worker"
    )
    wrapped = RuntimeError("reward 'judge' raised")
    wrapped.__cause__ = lost
    assert [ending_of_error(error).reason for error in (lost, wrapped)] == ["lost_process"] * 2


def test_a_mistake_in_the_settings_is_told_with_the_exit_code_of_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, adding("HFExporter", merge_lora=True))
    assert info.value.code == 2
    assert ends(tmp_path / "version_0") == [("error", 2)]
    assert "merge_lora=true" in read_status(tmp_path).end
    capsys.readouterr()


def life(folder: Path, reason: str | None, code: int, rollout: int | None) -> None:
    """What a life leaves in its folder."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": "x", "folder": folder.name}))
    if reason is not None:
        event = {"step": 4, "rollout": 4, "source": "run", "kind": "end", "message": "because"}
        append_event(folder, event, {"reason": reason, "exit_code": code})
    if rollout is not None:
        torch.save({}, folder / "checkpoints" / f"rollout={rollout:06d}.ckpt")


@pytest.mark.parametrize(
    ("reason", "code", "rollout", "end", "repeated"),
    [
        ("signal", 75, 3, "signal (exit code 75) after rollout 4: because", "goes on from"),
        ("non_finite_gradient", 1, 3, "non_finite_gradient (exit code 1)", "goes on from"),
        ("error", 2, 3, "error (exit code 2)", "needs other settings first"),
        ("error", 1, None, "error (exit code 1)", "starts anew: nothing was saved"),
        (None, 0, 3, "killed, or its machine was lost", "goes on from"),
        ("guard", 0, 3, "guard (exit code 0)", "take CollapseGuard out"),
        ("finished", 0, 3, "finished (exit code 0)", "raise trainer.max_epochs"),
        ("max_steps", 0, 3, "max_steps (exit code 0)", "raise trainer.max_steps"),
        ("early_stop", 0, 3, "early_stop (exit code 0)", "take EarlyStopping out"),
        ("stopped", 0, 3, "stopped (exit code 0)", "name a checkpoint (--ckpt_path=PATH)"),
    ],
)
def test_status_says_what_a_repeated_command_would_do(
    tmp_path, capsys, reason, code, rollout, end, repeated
):
    life(tmp_path / "version_0", "signal", 75, 1)
    life(tmp_path / "version_1", reason, code, rollout)
    if rollout is None:
        (tmp_path / "version_0" / "checkpoints" / "rollout=000001.ckpt").unlink()
    for folder in (tmp_path, tmp_path / "version_1"):
        assert status.command([str(folder)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"ended:       {end}")
        assert repeated in out
        assert "2 lives" in out


def test_status_imports_nothing_heavy_and_refuses_what_is_no_run(tmp_path):
    life(tmp_path / "version_0", "finished", 0, 3)
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; sys.argv = ['rlif', 'status', sys.argv[1]]; from rlif_lightning.__main__"
        " import command\n"
        "try: command()\n"
        "finally: assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    for folder, expected in ((tmp_path, 0), (tmp_path / "empty", 2), (tmp_path / "nowhere", 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == expected, done.stderr
        assert ("ended:       finished" in done.stdout) == (expected == 0)
