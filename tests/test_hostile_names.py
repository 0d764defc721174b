"""Names of folders and files that no file system takes: refused in one line, before anything is
loaded or trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from harness.command_line import base
from harness.runs import BASE, fit
from rlif_lightning import cli
from rlif_lightning.running.run_folder import check_place

NAMES = {"a NUL": "a\0b", "300 characters": "x" * 300, "4000 characters": "/tmp" + "/xxxxxxx" * 500}


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_is_refused_by_its_setting(name):
    with pytest.raises(ValueError, match=r"mine='.*give another folder") as raised:
        check_place("mine", Path(NAMES[name]))
    assert len(str(raised.value)) < 300


def test_a_place_below_what_is_not_there_yet_is_fine(tmp_path):
    check_place("mine", tmp_path / "new" / ".." / "other")
    assert list(tmp_path.iterdir()) == []


class NotReached(Callback):
    """Fails where training begins."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise AssertionError("it was not refused before")


def folder_of(kind: str, name: str) -> list[str]:
    exporter = {"class_path": "HFExporter", "init_args": {"folder": name}}
    trains = ["--trainer.callbacks+=test_hostile_names.NotReached"]
    return {
        "trainer.default_root_dir": ["fit", *BASE, f"--trainer.default_root_dir={name}", *trains],
        "HFExporter.folder": [
            "fit",
            *BASE,
            f"--trainer.callbacks+={json.dumps(exporter)}",
            *trains,
        ],
        "predictions.folder": ["predict", *base("--compare"), f"--predictions.folder={name}"],
        "ckpt_path": ["fit", *BASE, f"--ckpt_path={name}", *trains],
    }[kind]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a NUL", "300 characters"])
@pytest.mark.parametrize(
    "kind", ["trainer.default_root_dir", "HFExporter.folder", "predictions.folder", "ckpt_path"]
)
def test_each_setting_that_names_a_place_is_checked_first(tmp_path, capsys, kind, name):
    arguments = folder_of(kind, NAMES[name])
    root = [] if kind == "trainer.default_root_dir" else [f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, *root])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{kind}=" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../x", "a/b", "/etc/x", "n\0l", "", "a b"])
def test_a_reward_whose_name_is_a_path_is_refused(tmp_path, capsys, name):
    """Names of rewards are parts of the names of figures, and these of pictures."""
    with pytest.raises(SystemExit):
        fit(tmp_path, f"--model.rewards={json.dumps({name: {'head': 'ClusterVote'}})}")
    assert f"error: reward name {name!r} must be a plain identifier" in capsys.readouterr().err
