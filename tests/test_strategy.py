"""Which strategies are refused, and sharded checkpoints that are not what they should be."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from harness.command_line import build
from rlif_lightning import cli
from rlif_lightning.parallel.shard_index import check_folder
from rlif_lightning.running.strategies import (
    ShardedStrategy,
    TensorParallelStrategy,
    check_readable,
)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            "fsdp",
            r"trainer.strategy=fsdp: FSDP1 is not supported, FSDP2 is: use --config"
            r" configs/strategy/fsdp2.yaml",
        ),
        ("deepspeed", r"trainer.strategy=deepspeed: use --config configs/strategy/fsdp2.yaml"),
        (
            "ModelParallelStrategy",
            r"data and tensor parallelism are not combined, take one; use --config",
        ),
        ("FSDPStrategy", r"trainer.strategy=FSDPStrategy: FSDP1 is not supported"),
    ],
)
def test_other_strategies_are_refused_by_name(tmp_path, capsys, strategy, message):
    arguments = [
        "fit",
        "--config=configs/quickstart.yaml",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    with pytest.raises(SystemExit):
        cli.main([*arguments, f"--trainer.strategy={strategy}"])
    assert message in capsys.readouterr().err


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_checkpoint_folder_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a folder without \.metadata: not a finished sharded checkpoint"
    ):
        check_folder(tmp_path)
    torch.save({}, tmp_path / "meta.pt")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(
        ValueError,
        match=r"cannot be read: its index names posix.mkdir, which does not belong there",
    ):
        check_folder(tmp_path)
    assert not (tmp_path / "harm").exists()
    (tmp_path / ".metadata").write_bytes(b"\x80\x04half")
    with pytest.raises(ValueError, match="cannot be read"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_offload", "tp"])
def test_every_overlay_is_built(tmp_path, name):
    arguments = ["--config=configs/quickstart.yaml", f"--config=configs/strategy/{name}.yaml"]
    strategy = build(
        [*arguments, "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    ).trainer.strategy
    kinds = {"ddp": DDPStrategy, "tp": TensorParallelStrategy}
    assert isinstance(strategy, kinds.get(name, ShardedStrategy))
    if isinstance(strategy, ShardedStrategy):
        assert (strategy.cpu_offload, strategy.keep_sharded) == (name == "fsdp2_offload", False)
        assert strategy.reshard_gradients is False
    assert strategy._timeout == timedelta(minutes=30)  # a lost process ends the others
    assert {path.stem for path in Path("configs/strategy").glob("*.yaml")} == {
        "ddp",
        "fsdp2",
        "fsdp2_offload",
        "tp",
    }


def test_a_folder_of_shards_needs_a_strategy_that_reads_one(tmp_path):
    file = tmp_path / "file.ckpt"
    file.touch()
    for strategy in (ShardedStrategy(), TensorParallelStrategy()):
        check_readable(tmp_path, strategy)
    for checkpoint in (file, None):
        check_readable(checkpoint, DDPStrategy())
    with pytest.raises(
        ValueError, match=r"is a folder of shards, which trainer.strategy=DDPStrategy .*fsdp2.yaml"
    ):
        check_readable(tmp_path, DDPStrategy())
