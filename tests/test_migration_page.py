"""Every setting that the page on migration names exists, and what it says of Lightning holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

import callbacks
import rlif_lightning
from harness.command_line import base, build
from harness.files import ROOT
from harness.runs import BASE
from harness.settings import buildable, parameters
from rlif_lightning import cli
from rlif_lightning.running.run_checkpoints import RunCheckpoints
from rlif_lightning.running.stock_callbacks import REFUSED

PAGE = (ROOT / "docs" / "migration.md").read_text()
PEERS = (ROOT / "docs" / "peers.md").read_text()
OURS = re.compile(r"`((?:model|data|trainer)\.[\w.]+|seed_everything|compare|ckpt_path)`")
CHOSEN = ("model.objective", "model.advantage", "model.engine", "model.optimizer")  # by class


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def named() -> set[str]:
    return {name for row in rows() if len(row) > 1 for name in OURS.findall(row[1])}


def test_our_keys_on_the_page_exist():
    options = {
        name.removeprefix("--")
        for name in build([*BASE]).parser._option_string_actions  # the settings of fit
    } | {"compare", "ckpt_path"}
    of_classes = {setting for cls in buildable() for setting in parameters(cls)} | {
        "lr",
        "weight_decay",
    }
    unknown = [
        name
        for name in sorted(named())
        if name not in options
        and not (name.startswith(CHOSEN) and name.rpartition(".")[2] in of_classes)
    ]
    assert len(named()) > 40
    assert not unknown


def test_nothing_is_denied_that_the_page_on_peers_has():
    """Keys of TRL and verl beside which that page names a setting of ours."""
    lines = [line.split("|")[1:-1] for line in PEERS.splitlines() if line.startswith("| ")]
    has = {
        key
        for _, trl, verl, ours, *_ in (line for line in lines if len(line) >= 5)
        for key in re.findall(r"`(\w+)`", trl + verl)
        if "`" in ours
    }
    denied = {key for row in rows() if row[1:2] == ["-"] for key in re.findall(r"\w+", row[0])}
    assert len(has) > 20
    assert not has & denied


def test_our_classes_on_the_page_exist():
    classes = set(re.findall(r"`([A-Z]\w+)`", PAGE)) - {"GRPOConfig", "TrainingArguments"}
    theirs = {
        "LearningRateMonitor",
        "EarlyStopping",
        "DeviceStatsMonitor",
        "RichProgressBar",
        "TQDMProgressBar",
        "ModelCheckpoint",
        *(kind.__name__ for kind in REFUSED),
        *("EMAWeightAveraging", "WeightAveraging", "Tuner"),
    }
    known = {*rlif_lightning.__all__, *callbacks.__all__, "RunCheckpoints"} | theirs
    assert classes <= known, classes - known


STOCK = {
    "LearningRateMonitor": {},
    "EarlyStopping": {"monitor": "policy/entropy", "patience": 9},
    "RichProgressBar": {},
    "ModelCheckpoint": {"every_n_epochs": 1},
}


@pytest.mark.slow
def test_lightning_s_own_callbacks_work_together(tmp_path: Path):
    given = [
        "--trainer.callbacks+="
        + json.dumps({"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": settings})
        for name, settings in STOCK.items()
    ]
    where = f"--trainer.default_root_dir={tmp_path}"
    profiled = "--trainer.profiler=advanced"
    run = cli.main(["fit", *base("progress_bar"), where, profiled, *given])
    assert run.trainer.global_step == 8
    assert {type(each).__name__ for each in run.trainer.callbacks} >= {*STOCK}


def test_run_checkpoints_under_the_stock_trainer_say_what_to_use(tmp_path: Path):
    module = rlif_lightning.RLIFModule(
        "rlif-arithmetic", {"vote": rlif_lightning.ClusterVote()}, group_size=2
    )
    trainer = Trainer(
        callbacks=[RunCheckpoints()],
        default_root_dir=tmp_path,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(TypeError, match=r"use rlif_lightning\.RLIFTrainer, or ModelCheckpoint$"):
        trainer.fit(module, train_dataloaders=[0], val_dataloaders=[0])
