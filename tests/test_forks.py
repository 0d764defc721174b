"""Forks and changed settings through the command line, on one process and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.launches import BASE as DISTRIBUTED
from harness.launches import assert_same_weights, launch, on, weights
from harness.runs import BASE, fit, parameters
from rlif_lightning import cli
from rlif_lightning.running.events import read_events

ONE = ["--trainer.limit_train_batches=1"]
NOTHING_MOVES = "--model.optimizer.lr=1e-30"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, cli.RLIFCLI]:
    folder = tmp_path_factory.mktemp("first")
    run = fit(folder, *ONE)
    return folder / "version_0" / "checkpoints" / "rollout=000001.ckpt", run


REFUSED = {
    "a dropped reward": ["--model.rewards={vote: {head: ClusterVote}}"],
    "an added LoRA": ["--model.policy.lora.rank=4"],
    "another source": ["--data.source.init_args.seed=1"],
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("wanted", ["auto", pytest.param("path", marks=pytest.mark.slow)])
def test_what_cannot_go_on_is_refused_in_one_line(first, capfd, arguments, wanted):
    if "lora" in arguments[0]:
        pytest.importorskip("peft")
    path, _ = first
    given = path if wanted == "path" else "auto"
    with pytest.raises(SystemExit) as ended:
        fit(path.parent.parent.parent, *ONE, *arguments, f"--ckpt_path={given}")
    assert ended.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert f"fork_from={path} instead of ckpt_path" in lines[0]
    name = arguments[0].split("=")[0].removeprefix("--").removesuffix(".rank")
    assert name in lines[0]


@pytest.mark.slow  # test_changed_settings.py forks without evaluating
def test_a_fork_is_evaluated_with_its_weights_and_goes_on_as_a_run_of_its_own(first, tmp_path):
    path, before = first
    forking = [f"--fork_from={path}", "--ckpt_path=auto", NOTHING_MOVES, "--compare=true"]
    run = fit(tmp_path, *ONE, *forking)
    assert int(run.model.num_rollouts) == 1
    found = parameters(run)
    for name, value in parameters(before).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-20)
    looking = [*(each for each in BASE if "compare" not in each), f"--ckpt_path={path}"]
    measured = cli.main(["validate", *looking, f"--trainer.default_root_dir={tmp_path / 'v'}"])
    assert run.before is not None
    assert run.before.figures() == measured.model.report.figures()
    kinds = [event["kind"] for event in read_events(tmp_path / "version_0")]
    assert kinds.count("fork") == 1
    again = fit(tmp_path, *ONE, *forking, "--trainer.max_epochs=2")
    assert int(again.model.num_rollouts) == 2
    assert "fork" not in [event["kind"] for event in read_events(tmp_path / "version_1")]


@pytest.mark.slow
def test_two_processes_say_a_change_once_and_forks_read_shards_and_files(tmp_path):
    """A change with FSDP2 on two; forks of its shards and of a file, divided and not."""
    base = [*DISTRIBUTED, *ONE, "--trainer.limit_val_batches=0"]
    launch(tmp_path, {"file": base})
    launch(tmp_path, {"shards": [*base, *on("fsdp2", 2)]}, forks=2)
    where = "version_0/checkpoints/rollout=000001.ckpt"
    file, shards = (tmp_path / name / where for name in ("file", "shards"))
    assert shards.is_dir()
    lora = ["--model.policy.lora.rank=4"]
    tensor_parallel = ["--config=configs/strategy/tp.yaml", "--trainer.devices=2"]
    two = {
        "changed": [*base, *on("fsdp2", 2), f"--ckpt_path={shards}", "--trainer.max_epochs=2",
                    NOTHING_MOVES],
        "shards by fsdp2": [*base, *on("fsdp2", 2), f"--fork_from={shards}", NOTHING_MOVES],
        "file by fsdp2": [*base, *on("fsdp2", 2), f"--fork_from={file}", NOTHING_MOVES],
        "shards by ddp": [*base, *on("ddp", 2), f"--fork_from={shards}", NOTHING_MOVES],
        "file by tp": [*base, *tensor_parallel, f"--fork_from={file}", NOTHING_MOVES],
        "shards by tp": [*base, *tensor_parallel, f"--fork_from={shards}", NOTHING_MOVES],
        "shards by lora": [*base, *on("fsdp2", 2), *lora, f"--fork_from={shards}", NOTHING_MOVES],
    }  # fmt: skip
    launch(tmp_path, two, forks=2)
    expected = weights(tmp_path, "shards")
    for name in two:
        if "lora" not in name:
            assert_same_weights(weights(tmp_path, name), expected)
    adapted = weights(tmp_path, "shards by lora")
    found = {name.replace("base_model.model.", "", 1).replace(".base_layer.", "."): value
             for name, value in adapted.items() if ".lora_" not in name}  # fmt: skip
    assert_same_weights(found, expected)
    events = read_events(tmp_path / "changed" / "version_0")
    said = [event["message"].split(" (")[0] for event in events if event["kind"] == "settings"]
    assert said == ["model.optimizer.init_args.lr: 0.001 -> 1e-30"]
    forks = [e for e in read_events(tmp_path / "file by tp" / "version_0") if e["kind"] == "fork"]
    assert len(forks) == 1
