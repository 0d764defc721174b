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


@pytest.mark.slow
@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("wanted", ["auto", pytest.param("path", marks=pytest.mark.full)])
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


@pytest.mark.full  # test_changed_settings.py forks without evaluating
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


TWO = [*DISTRIBUTED, *ONE, "--trainer.limit_val_batches=0"]
SHARDS = "shards/version_0/checkpoints/rollout=000001.ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """What a run with FSDP2 on two saves, and the same run on one."""
    folder = tmp_path_factory.mktemp("saved")
    launch(folder, {"file": TWO})
    launch(folder, {"shards": [*TWO, *on("fsdp2", 2)]}, forks=2)
    assert (folder / SHARDS).is_dir()
    return folder


def kinds_of(folder: Path) -> list[str]:
    return [event["kind"] for event in read_events(folder / "version_0")]


@pytest.mark.slow
def test_two_processes_say_a_change_once_and_fork_from_shards(saved, tmp_path):
    divided = [*TWO, *on("fsdp2", 2), NOTHING_MOVES]
    changed = [f"--ckpt_path={saved / SHARDS}", "--trainer.max_epochs=2"]
    forked = [f"--fork_from={saved / SHARDS}"]
    launch(tmp_path, {"changed": [*divided, *changed], "forked": [*divided, *forked]}, forks=2)
    for name in ("changed", "forked"):
        assert_same_weights(weights(tmp_path, name), weights(saved, "shards"))
    events = read_events(tmp_path / "changed" / "version_0")
    said = [event["message"].split(" (")[0] for event in events if event["kind"] == "settings"]
    assert said == ["model.optimizer.init_args.lr: 0.001 -> 1e-30"]
    assert kinds_of(tmp_path / "forked").count("fork") == 1


@pytest.mark.full  # test_distributed.py and test_tensor_parallel.py read each kind of checkpoint
def test_forks_of_shards_and_of_files_under_every_strategy(saved, tmp_path):
    from_shards = f"--fork_from={saved / SHARDS}"
    from_file = from_shards.replace("/shards/", "/file/")
    runs = {
        "file by fsdp2": [*on("fsdp2", 2), from_file],
        "shards by ddp": [*on("ddp", 2), from_shards],
        "file by tp": [*on("tp", 2), from_file],
        "shards by tp": [*on("tp", 2), from_shards],
        "shards by lora": [*on("fsdp2", 2), "--model.policy.lora.rank=4", from_shards],
    }
    launch(tmp_path, {name: [*TWO, *run, NOTHING_MOVES] for name, run in runs.items()}, forks=2)
    expected = weights(saved, "shards")
    for name in runs:
        assert kinds_of(tmp_path / name).count("fork") == 1
        if "lora" not in name:
            assert_same_weights(weights(tmp_path, name), expected)
    adapted = weights(tmp_path, "shards by lora")
    found = {name.replace("base_model.model.", "", 1).replace(".base_layer.", "."): value
             for name, value in adapted.items() if ".lora_" not in name}  # fmt: skip
    assert_same_weights(found, expected)
