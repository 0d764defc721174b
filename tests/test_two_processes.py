"""Two processes: code that is run, a user's own collective, and torchrun with other numbers of
them after a resume.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.launches import BASE, CASES, assert_same_weights, figures, launch, metrics, on, weights
from harness.programs import PROGRAMS
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Prompts, RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling


class Programmer(NativeEngine):
    """A sampler whose completions are read as programs: which one follows from the completion's own
    text.
    """

    def generate(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Rollout:
        rollout = super().generate(prompts, group_size, sampling, step)
        programs = [PROGRAMS[zlib.crc32(text.encode()) % len(PROGRAMS)] for text in rollout.texts]
        return replace(rollout, texts=[f"```python\n{program}\n```" for program in programs])


class AboveTheMean(RewardHead):
    """A user's head with a collective of its own: how much longer a completion is than the mean
    over all processes. And with a model of its own, which has gradients in no loss of the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def forward(self, rollout: Rollout) -> RewardOutput:
        lengths = rollout.lengths.double()
        total, count = all_rank_sum(
            torch.stack([lengths.sum(), torch.tensor(float(len(lengths)))]).double()
        )
        mean = total / count
        return RewardOutput((lengths - mean).float(), log={"mine/mean": float(mean)})


def assert_same_rows(left: list[dict[str, float]], right: list[dict[str, float]]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


SANDBOX = {"isolation": "rlimits+", "wall_seconds": 20, "call_seconds": 10}
HEADS = {
    "behaviour": {
        "head": {"class_path": "BehaviourVote", "init_args": {"sandbox": SANDBOX}},
        "weight": 0.5,
    },
    "tests": {
        "head": {"class_path": "CodeTests", "init_args": {"sandbox": SANDBOX}},
        "weight": 0.5,
    },
    "mine": {"head": {"class_path": "test_two_processes.AboveTheMean"}, "weight": 0.1},
}
PROGRAMMING = [
    f"--model.rewards={json.dumps(HEADS)}",
    "--model.engine=test_two_processes.Programmer",
    "--data.source=harness.programs.ProgrammingProblems",
    "--data.source.init_args.size=32",
    "--trainer.limit_val_batches=0",
]


@pytest.mark.slow
def test_code_and_a_users_own_collective_on_two_processes_are_those_of_one(tmp_path):
    """Once with groups on each in every update, once with one group in each update, so that one
    process has none.
    """
    cases = {
        "whole": [],
        "uneven": ["--data.prompts_per_rollout=2", "--model.update.updates_per_rollout=2"],
    }
    runs = {name: [*BASE, *PROGRAMMING, *case] for name, case in cases.items()}
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, runs)
    launch(two, {name: [*run, *on("ddp", 2)] for name, run in runs.items()}, forks=2)
    for name in cases:
        assert [each["world_size"] for each in figures(two, name)] == [2, 2]
        assert_same_weights(weights(two, name), weights(one, name))
        assert_same_rows(metrics(two, name), metrics(one, name))
    first = metrics(one, "whole")[0]
    assert 0 < first["reward/tests/mean"] < 1
    assert first["reward/behaviour/mean"] > 0
    assert first["mine/mean"] > 0


def checkpoint(folder: Path, name: str) -> Path:
    return folder / name / "version_0" / "checkpoints" / "rollout=000001.ckpt"


@pytest.mark.full  # test_tensor_parallel.py resumes on one process what two have saved
def test_a_run_under_torchrun_goes_on_with_one_process_and_one_with_two(tmp_path):
    saving = {"class_path": "RunCheckpoints", "init_args": {"every": 1}}
    base = [
        *BASE,
        *CASES["method"],
        "--trainer.limit_val_batches=0",
        f"--trainer.callbacks+={json.dumps(saving)}",
    ]
    first, one, two = (tmp_path / name for name in ("first", "one", "two"))
    launch(first, {"on two": [*base, *on("ddp", 2)]}, torchrun=2)
    launch(one, {"whole": base, "from two": [*base, f"--ckpt_path={checkpoint(first, 'on two')}"]})
    launch(
        two,
        {"from one": [*base, *on("ddp", 2), f"--ckpt_path={checkpoint(one, 'whole')}"]},
        torchrun=2,
    )
    for folder, name, processes in ((one, "from two", 1), (two, "from one", 2)):
        assert [each["world_size"] for each in figures(folder, name)] == [processes] * processes
        assert figures(folder, name)[0]["rollouts"] == 2
        assert_same_weights(weights(folder, name), weights(one, "whole"))
        assert_same_rows(metrics(folder, name), metrics(one, "whole")[1:])
