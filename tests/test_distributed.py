"""Several processes are one: real runs under gloo, launched by Lightning and by torchrun, against
the same in one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.launches import (
    BASE,
    CASES,
    assert_same_runs,
    assert_same_weights,
    checkpoint,
    figures,
    launch,
    on,
    weights,
)
from rlif_lightning.model.loading import Policy, load_pretrained
from rlif_lightning.model.policy import PolicyModel

RARE = ("lora", "checkpointing")  # what is left to the full run
USUAL = [name for name in CASES if name not in RARE]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Every usual case in one process."""
    folder = tmp_path_factory.mktemp("alone")
    launch(folder, {name: [*BASE, *CASES[name]] for name in USUAL})
    return folder


def assert_the_same(folder: Path, alone: Path, name: str) -> None:
    assert [each["world_size"] for each in figures(folder, name)] == [2, 2]
    assert_same_runs((folder, name), (alone, name))


# The mark: below, callbacks see and micro-batches train shards; test_sharding.py has their numbers.
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.full)])
def test_two_processes_are_one(alone, tmp_path, strategy):
    """The same parameters and the same logged metrics; Lightning starts the processes, or
    torchrun.
    """
    runs = {name: [*BASE, *on(strategy, 2), *CASES[name]] for name in USUAL}
    launch(tmp_path, runs, torchrun=2 if strategy == "fsdp2" else 0)
    for name in USUAL:
        assert_the_same(tmp_path, alone, name)


@pytest.mark.full  # reduced like the usual cases' parameters; test_run.py has both in one process
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_adapters_and_recomputation_on_two_processes_are_those_on_one(tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, {name: [*BASE, *CASES[name]] for name in RARE})
    launch(two, {name: [*BASE, *on(strategy, 2), *CASES[name]] for name in RARE}, forks=2)
    for name in RARE:
        assert_the_same(two, one, name)


GUARD = {
    "action": "rollback",
    "baseline": 1,
    "snapshot_every": 1,
    "detectors": {
        "length_low": {"factor": 5.0, "window": 1}
    },  # always an alarm after the first rollout: it goes back
}
SCHEDULE = {"start": 1.0, "points": [[2, 0.1]]}
CALLBACKS = {
    "CollapseGuard": GUARD,
    "CompletionWriter": {"every": 1, "show": ["tensorboard"]},
    "EntropyMonitor": {},
    "HFExporter": {"monitor": "val/accuracy"},
    "KLCovScheduler": {"weight": SCHEDULE},
    "LabelFreeStopping": {},
    "RunReport": {},
}


@pytest.mark.slow
def test_callbacks_and_other_subcommands_work_on_sharded_policies(tmp_path):
    """Every process must take part wherever one does, or this would hang."""
    watched = [
        f"--trainer.callbacks+={json.dumps({'class_path': name, 'init_args': settings})}"
        for name, settings in CALLBACKS.items()
    ]
    looked = ["preflight", *BASE[1:], "--prompts=6"]
    launch(tmp_path, {"preflight alone": looked})
    sharded = on("fsdp2", 2)
    launch(
        tmp_path,
        {"callbacks": [*BASE, *sharded, *watched], "preflight": [*looked, *sharded]},
        forks=2,
    )
    folder = next(tmp_path.glob("callbacks/version_*"))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert "rollback" in [event["kind"] for event in events]
    trained = weights(tmp_path, "callbacks")
    exported = load_pretrained(
        Policy(str(folder / "export" / "last"), dtype="float64")
    ).state_dict()
    assert_same_weights(trained, exported)
    assert (folder / "report.html").is_file()
    assert (folder / "completions.jsonl").is_file()
    assert (folder / "completions.rank1.jsonl").is_file()
    found, expected = (
        json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/version_*/preflight.json"))
    )
    assert len(found["heads"]) == 2
    for one, other in zip(
        [found, *found.pop("heads")], [expected, *expected.pop("heads")], strict=True
    ):
        for record in (one, other):  # shards need other room than whole weights do
            record.pop("thresholds", None), record.pop("memory_bytes", None)
        assert one == pytest.approx(other)


@pytest.mark.full  # two processes are above
def test_four_processes_are_one(alone, tmp_path):
    """Gathered for a rollout; or kept sharded, where no rank holds the whole and one that is done
    goes on in step.
    """
    kept = on("fsdp2", 4, "--trainer.strategy.init_args.keep_sharded=true")
    runs = {name: [*BASE, *kept, *CASES[name]] for name in ("method", "one group")}
    launch(tmp_path, runs | {"gathered": [*BASE, *on("fsdp2", 4), *CASES["method"]]}, forks=4)
    for name, same in (("method", "method"), ("one group", "one group"), ("gathered", "method")):
        found = figures(tmp_path, name)
        assert [each["world_size"] for each in found] == [4] * 4
        assert_same_runs((tmp_path, name), (alone, same))
        whole = sum(
            value.numel() for key, value in weights(tmp_path, name).items() if "lm_head" not in key
        )
        assert all(each["held"] <= whole / 4 + 200 for each in found)


@pytest.mark.full  # test_sharding.py has gradients of each kind, in one process
def test_gradients_may_be_divided_between_micro_batches(tmp_path):
    """Apart from where the weights are: every way ends with the same parameters, several
    micro-batches an update.
    """
    ways = {"whole": {}, "divided": {"reshard_gradients": True}}
    ways["kept, whole"] = {"keep_sharded": True, "reshard_gradients": False}
    runs = {
        name: [
            *BASE,
            *on(
                "fsdp2",
                2,
                *(f"--trainer.strategy.init_args.{key}={value}" for key, value in settings.items()),
            ),
            *CASES["method"],
            "--trainer.limit_train_batches=1",
            "--trainer.limit_val_batches=0",
        ]
        for name, settings in ways.items()
    }
    launch(tmp_path, runs, forks=2)
    expected = weights(tmp_path, "whole")
    start = PolicyModel(Policy("rlif-arithmetic", dtype="float64")).model.state_dict()
    assert (
        max(float((value - start[name]).abs().max()) for name, value in expected.items()) > 1e-3
    )  # it has trained
    for name in ways:
        assert_same_weights(weights(tmp_path, name), expected)


@pytest.mark.full  # test_tensor_parallel.py: two processes and one, and one whole file
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Sharded checkpoints from two processes to one and back, a whole one too: the uninterrupted
    run's parameters.
    """
    base = [*BASE, *CASES["method"], "--trainer.limit_val_batches=0"]
    saving = {
        "class_path": "ModelCheckpoint",
        "init_args": {"every_n_train_steps": 4, "save_top_k": -1},
    }
    saved = [*base, f"--trainer.callbacks+={json.dumps(saving)}"]
    whole = "--trainer.strategy.init_args.save_distributed_checkpoint=false"
    two, one, both = (tmp_path / name for name in ("two", "one", "both"))
    launch(
        two,
        {"sharded": [*saved, *on("fsdp2", 2)], "whole": [*saved, *on("fsdp2", 2, whole)]},
        forks=2,
    )
    resumed = {
        "plain": saved,
        "sharded": [*saved, *on("fsdp2", 1)],
        "from two": [*base, *on("fsdp2", 1), f"--ckpt_path={checkpoint(two, 'sharded')}"],
        "from whole": [*base, f"--ckpt_path={checkpoint(two, 'whole')}"],
    }
    launch(one, resumed)
    ways = {f"from {name}": checkpoint(one, name) for name in ("plain", "sharded")}
    launch(
        both,
        {name: [*base, *on("fsdp2", 2), f"--ckpt_path={path}"] for name, path in ways.items()},
        forks=2,
    )
    for folder, name in (
        (one, "from two"),
        (one, "from whole"),
        (both, "from plain"),
        (both, "from sharded"),
    ):
        assert figures(folder, name)[0]["rollouts"] == 2
        assert_same_weights(weights(folder, name), weights(one, "plain"))
