"""``~`` is the home folder in every setting that names a file or a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.files import ROOT
from harness.runs import BASE, ONE, adding
from rlif_lightning import cli
from rlif_lightning.data.tokenizer import resolve_model
from rlif_lightning.running.events import read_events

CONFIG = f"--config={ROOT / 'configs' / 'quickstart.yaml'}"
RUN = [CONFIG, *BASE[1:], *ONE, "--trainer.default_root_dir=~/runs"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder beside the folder that is worked in, which stays empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_a_run_below_the_home_folder_is_in_one_place_and_can_be_resumed(home):
    exported = adding("HFExporter", folder="~/exported")
    cli.main(["fit", *RUN, exported])
    assert not list(Path.cwd().iterdir())
    assert (home / "exported" / "last" / "config.json").is_file()
    names = {path.name for path in (home / "runs" / "version_0").iterdir()}
    assert {"metrics.csv", "checkpoints", "events.jsonl", "config.yaml"} <= names
    cli.main(["fit", *RUN, exported, "--trainer.max_epochs=2", "--ckpt_path=auto"])
    assert read_events(home / "runs" / "version_1")[-1]["rollout"] == 2
    assert not list(Path.cwd().iterdir())


def test_what_is_read_may_be_below_the_home_folder(home):
    """A policy, problems, a checkpoint of each kind; and a policy that is written in Python."""
    shutil.copytree(resolve_model("rlif-arithmetic"), home / "policy")
    (home / "sums.jsonl").write_text('{"question": "1+2=", "answer": "3"}\n' * 8)
    source = {"class_path": "LocalFiles", "init_args": {"train": "~/sums.jsonl"}}
    given = ["fit", CONFIG, "--compare=false", "--trainer.limit_train_batches=1"]
    given += ["--trainer.enable_progress_bar=false", f"--data.source={json.dumps(source)}"]
    given += [
        "--data.prompts_per_rollout=4",
        "--data.group_size=2",
        "--trainer.limit_val_batches=0",
    ]
    given += ["--model.policy.name=~/policy", "--model.sampling.max_new_tokens=8"]
    first = cli.main([*given, "--trainer.default_root_dir=~/one"])
    first.model.save_pretrained("~/kept")
    assert (home / "kept" / "config.json").is_file()
    [saved] = (home / "one").rglob("rollout=*.ckpt")
    place = f"~/{saved.relative_to(home)}"
    longer = [*given, "--trainer.max_epochs=2"]
    cli.main([*longer, "--trainer.default_root_dir=~/two", f"--ckpt_path={place}"])
    cli.main([*longer, "--trainer.default_root_dir=~/three", f"--fork_from={place}"])
    assert not list(Path.cwd().iterdir())


@pytest.mark.slow
def test_predictions_below_the_home_folder(home):
    arguments = [each for each in RUN if "compare" not in each]
    cli.main(["predict", *arguments, "--predictions.folder=~/drawn"])
    assert (home / "drawn" / "README.md").is_file()
    assert not list(Path.cwd().iterdir())
