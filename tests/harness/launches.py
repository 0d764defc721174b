"""Several command lines on one or more processes, and what came of each (``launched.py``)."""

from __future__ import annotations

import csv
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks.ranks import free_port
from harness.forked import run_module
from harness.processes import ON_TWO, environment

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
    # Votes, batch normalisation by tokens, KL-Cov, a reference model, less gradient on answers;
    # ranks fill different numbers of micro-batches.
    "method": [
        '--model.advantage={"class_path": "GDPO", "init_args": {"batch_norm": "token"}}',
        f"--model.objective={REFERENCE}",
        "--model.update.micro_batch_tokens=100",
        "--model.answer_tokens.factor=0.25",
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
    # Quantiles over all ranks, and weights that move; the second rollout's are those of both steps.
    "stare": [
        '--model.objective={"class_path": "STARE", "init_args": {"negative_weight": 0.9}}',
        '--trainer.callbacks+={"class_path": "STAREController", "init_args":'
        ' {"target": 9.0, "step": 0.1}}',
        "--model.update.micro_batch_tokens=100",
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
STRATEGIES = {name: f"configs/strategy/{name}.yaml" for name in ("ddp", "fsdp2", "tp")}
QUIET = {
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def launch(folder: Path, runs: dict[str, list[str]], torchrun: int = 0, forks: int = 0) -> None:
    """Run command lines in processes that torchrun starts, or a fork (imports once: cheap), or else
    Lightning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        name: [*arguments, f"--trainer.default_root_dir={folder / name}"]
        for name, arguments in runs.items()
    }
    mine = ("LOCAL_", "WORLD_", "RANK")
    kept = {name: value for name, value in environment().items() if not name.startswith(mine)}
    arguments = [str(folder), str(forks), json.dumps(given)]
    if torchrun:
        start = ["--standalone", f"--nproc-per-node={torchrun}", "-m", "harness.launched"]
        done = run_module("torch.distributed.run", [*start, *arguments], kept | QUIET)
    else:
        done = run_module("harness.launched", arguments, kept | QUIET)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def both_end(folder: Path, arguments: list[str]) -> list[str]:
    """What each of two processes printed that nobody stops: both must fail by themselves,
    in time.
    """
    port = str(free_port())
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "WORLD_SIZE": "2"}
    given = json.dumps({"two": [*arguments, f"--trainer.default_root_dir={folder / 'two'}"]})
    arguments = [str(folder), "0", given]

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        own = {**environment(), **QUIET, **group, "LOCAL_RANK": str(rank)}
        return run_module("harness.launched", arguments, own)

    with ThreadPoolExecutor(2) as both:
        done = list(both.map(one, range(2)))
    told = [each.stdout + each.stderr for each in done]
    assert all(each.returncode == 1 for each in done), told
    return told


def resumed_and_whole(folder: Path, *arguments: str) -> None:
    """Resume the run in ``lives`` on two processes, and make the same run without a break in
    ``whole``.
    """
    resumed, whole = [*ON_TWO, *arguments, "--ckpt_path=auto"], [*ON_TWO, *arguments]
    launch(folder, {"lives": resumed, "whole": whole}, forks=2)


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
    with min((folder / name).rglob("metrics.csv")).open() as file:
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


def assert_same_runs(left: tuple[Path, str], right: tuple[Path, str]) -> None:
    """Two runs, each a folder and a name, end with the same weights and log the same figures."""
    assert_same_weights(weights(*left), weights(*right))
    assert_same_metrics(metrics(*left), metrics(*right))


def assert_two_are_one(
    folder: Path, arguments: list[str], strategy: str = "ddp"
) -> list[dict[str, float]]:
    """Run in one process and in two, which must end with the same weights and log the same figures;
    return these. The runs are in ``one`` and in a folder of the strategy's name.
    """
    launch(folder, {"one": arguments})
    launch(folder, {strategy: [*arguments, *on(strategy, 2)]}, forks=2)
    assert_same_runs((folder, strategy), (folder, "one"))
    return metrics(folder, "one")


def checkpoint(folder: Path, name: str) -> Path:
    """After the first of two rollouts, in the middle of the epoch."""
    return min((folder / name).rglob("*step=4.ckpt"))
