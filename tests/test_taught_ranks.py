"""A teacher's average on several processes: they are one, and resume each other's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.launches import (
    BASE,
    assert_same_runs,
    assert_same_weights,
    assert_two_are_one,
    launch,
    on,
)
from harness.launches import weights as weights_of
from harness.python_runs import at
from harness.runs import saving
from rlif_lightning.running.checkpoint_faults import why_unusable

TEACHER = {"template": "{feedback} {prompt}", "top_k": 9, "ema_rate": 0.3}
OBJECTIVE = {"class_path": "DistIL", "init_args": {"teacher": TEACHER}}
ARGUMENTS = [
    *BASE,
    "--trainer.max_epochs=2",
    "--trainer.limit_val_batches=0",
    '--model.rewards={"gold": {"head": "GoldAnswer"}}',
    f"--model.objective={json.dumps(OBJECTIVE)}",
    "--model.update.micro_batch_tokens=100",
    saving(every=1, keep=None),
]


def checkpoint(folder: Path, name: str) -> str:
    return f"--ckpt_path={at(folder / name / 'version_0' / 'checkpoints', 2)}"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Four rollouts; groups without a right sibling leave one rank with fewer passes."""
    logged = assert_two_are_one(tmp_path, ARGUMENTS)
    assert 0 < logged[0]["teacher/coverage"] < 1


@pytest.mark.full  # test_teacher.py resumes in one process
def test_two_processes_are_one_under_every_strategy_and_resume_each_other(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, {"whole": ARGUMENTS})
    launch(
        two,
        {
            "ddp": [*ARGUMENTS, *on("ddp", 2)],
            "fsdp2": [*ARGUMENTS, *on("fsdp2", 2)],
            "tp": [*ARGUMENTS, *on("tp", 2)],
            "fsdp2 again": [*ARGUMENTS, *on("fsdp2", 2), checkpoint(two, "fsdp2")],
            "tp again": [*ARGUMENTS, *on("tp", 2), checkpoint(two, "tp")],
            "ddp from one": [*ARGUMENTS, *on("ddp", 2), checkpoint(one, "whole")],
        },
        forks=2,
    )
    assert why_unusable(at(two / "fsdp2" / "version_0" / "checkpoints", 2)) is None
    launch(
        one,
        {
            "from shards": [*ARGUMENTS, *on("fsdp2", 1), checkpoint(two, "fsdp2")],
            "from ddp": [*ARGUMENTS, checkpoint(two, "ddp")],
        },
    )
    for name in ("ddp", "fsdp2", "tp"):
        assert_same_runs((two, name), (one, "whole"))
    assert_same_weights(weights_of(two, "ddp from one"), weights_of(one, "whole"))
    for name in ("from shards", "from ddp"):
        assert_same_weights(weights_of(one, name), weights_of(one, "whole"))
    for name in ("fsdp2", "tp"):
        whole, again = weights_of(two, name), weights_of(two, f"{name} again")
        assert all(torch.equal(value, again[key]) for key, value in whole.items())
