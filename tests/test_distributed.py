"""Several processes are one: real runs under gloo, launched by Lightning and by torchrun, against the same in one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlif_lightning.model.loading import Policy, load_pretrained
from rlif_lightning.model.policy import PolicyModel

ROOT = Path(__file__).resolve().parent.parent
HEADS = {
    "vote": {"head": "ClusterVote", "weight": 0.5},
    "certainty": {"head": "MeanLogprob", "weight": 0.5},
}
BASE = [
    "fit",
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.source.init_args.size=32",
    "--data.source.init_args.validation_size=9",
    "--data.prompts_per_rollout=8",
    "--data.validation_prompts_per_batch=4",
    "--data.group_size=4",
    "--model.policy.dtype=float64",
    "--model.optimizer.lr=1e-3",
    "--model.evaluation.samples=2",
    "--trainer.check_val_every_n_epoch=1",
]
REFERENCE = (
    '{"class_path": "KLCov", "init_args": {"fraction": 0.2, "weight": 1.0, "reference_kl":'
    ' {"weight": 0.1}}}'
)
CASES = {
    # Votes, batch normalisation by tokens, KL-Cov, a reference model; ranks fill different numbers
    # of micro-batches.
    "method": [
        '--model.advantage={"class_path": "GDPO", "init_args": {"batch_norm": "token"}}',
        f"--model.objective={REFERENCE}",
        "--model.update.micro_batch_tokens=100",
    ],
    # One group in each update: every other rank has none.
    "one group": ["--data.prompts_per_rollout=4", "--model.update.micro_batch_tokens=60"],
    # Old log-probs by one more pass, a second pass over the rollout, marks by the current policy.
    # In the first rollout the first mini-batch's only group is unanimous, so that it trains on
    # nothing.
    "rescored": [
        "--data.prompts_per_rollout=4",
        "--model.update.old_logprobs=rescored",
        "--model.update.epochs_per_rollout=2",
        "--model.objective=KLCov",
        "--model.objective.fraction=0.3",
        "--model.objective.weight=1.0",
        "--model.objective.rank_by=current",
        '--model.rewards={"vote": {"head": "ClusterVote", "weight": 1.0}}',
    ],
    "lora": [
        "--model.policy.lora.rank=4",
        f"--model.objective={REFERENCE}",
        "--model.optimizer.lr=1e-2",
    ],
    "checkpointing": [
        "--model.policy.gradient_checkpointing=true",
        "--model.update.micro_batch_tokens=200",
    ],
}
STRATEGIES = {"ddp": "configs/strategy/ddp.yaml", "fsdp2": "configs/strategy/fsdp2.yaml"}
QUIET = {
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def launch(folder: Path, runs: dict[str, list[str]], torchrun: int = 0, forks: int = 0) -> None:
    """Run command lines in processes that torchrun starts, or a fork (imports once: cheap), or else Lightning."""
    folder.mkdir(parents=True, exist_ok=True)
    start = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
        if torchrun
        else []
    )
    given = {
        name: [*arguments, f"--trainer.default_root_dir={folder / name}"]
        for name, arguments in runs.items()
    }
    command = [
        sys.executable,
        *start,
        "tests/launched.py",
        str(folder),
        str(forks),
        json.dumps(given),
    ]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOCAL_", "WORLD_", "RANK"))
    }
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=kept | QUIET | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
    assert status == 0, (folder / "log.txt").read_text()[-6000:]


def on(strategy: str, processes: int, *arguments: str) -> list[str]:
    """Arguments that put a run on several processes."""
    return [f"--config={STRATEGIES[strategy]}", f"--trainer.devices={processes}", *arguments]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def figures(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.[0-9].json"))]


def metrics(folder: Path, name: str) -> list[dict[str, float]]:
    """What was logged, but for times and for what depends on how work is cut up."""
    left_out = ("time/", "per_second", "update/")
    with next((folder / name).rglob("metrics.csv")).open() as file:
        rows = [
            {k: float(v) for k, v in row.items() if v and not any(x in k for x in left_out)}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if len(row) > 2]


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_same_metrics(left: list[dict[str, float]], right: list[dict[str, float]]) -> None:
    assert len(left) == len(right) > 2
    for one, other in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Every case in one process."""
    folder = tmp_path_factory.mktemp("alone")
    launch(folder, {name: [*BASE, *arguments] for name, arguments in CASES.items()})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one(alone, tmp_path, strategy):
    """The same parameters and the same logged metrics; Lightning starts the processes, or torchrun."""
    runs = {name: [*BASE, *on(strategy, 2), *arguments] for name, arguments in CASES.items()}
    launch(tmp_path, runs, torchrun=2 if strategy == "fsdp2" else 0)
    for name in CASES:
        assert [each["world_size"] for each in figures(tmp_path, name)] == [2, 2]
        assert_same_weights(weights(tmp_path, name), weights(alone, name))
        assert_same_metrics(metrics(tmp_path, name), metrics(alone, name))


def checkpoint(folder: Path, name: str) -> Path:
    """After the first of two rollouts, in the middle of the epoch."""
    return next((folder / name).rglob("*step=4.ckpt"))


GUARD = {
    "action": "rollback",
    "baseline": 1,
    "snapshot_every": 1,
    "detectors": {
        "length_low": {"factor": 5.0, "window": 1}
    },  # always an alarm after the first rollout: it goes back
}
SCHEDULE = {"kind": "linear", "start": 1.0, "end": 0.1, "steps": 2}
CALLBACKS = {
    "CollapseGuard": GUARD,
    "CompletionWriter": {"every": 1, "table": False},
    "EntropyMonitor": {"floor": 0.01},
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
        one.pop("thresholds", None), other.pop("thresholds", None)
        assert one == pytest.approx(other)


@pytest.mark.slow
def test_four_processes_are_one(alone, tmp_path):
    """Gathered for a rollout; or kept sharded, where no rank holds the whole and one that is done goes on in step."""
    kept = on("fsdp2", 4, "--trainer.strategy.init_args.keep_sharded=true")
    runs = {name: [*BASE, *kept, *CASES[name]] for name in ("method", "one group")}
    launch(tmp_path, runs | {"gathered": [*BASE, *on("fsdp2", 4), *CASES["method"]]}, forks=4)
    for name, same in (("method", "method"), ("one group", "one group"), ("gathered", "method")):
        found = figures(tmp_path, name)
        assert [each["world_size"] for each in found] == [4] * 4
        assert_same_weights(weights(tmp_path, name), weights(alone, same))
        assert_same_metrics(metrics(tmp_path, name), metrics(alone, same))
        whole = sum(
            value.numel() for key, value in weights(tmp_path, name).items() if "lm_head" not in key
        )
        assert all(each["held"] <= whole / 4 + 200 for each in found)


@pytest.mark.slow
def test_gradients_may_be_divided_between_micro_batches(tmp_path):
    """Apart from where the weights are: every way ends with the same parameters, several micro-batches an update."""
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


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Sharded checkpoints from two processes to one and back, a whole one too: the uninterrupted run's parameters."""
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
