"""Exact resume: from every checkpoint of a run the rest is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.events import read_events
from harness.runs import BASE, differences, rows
from rlif_lightning import cli
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.running.checkpoint_search import find_checkpoints


class Moody(RewardHead):
    """A user's head with state of every kind: a buffer, and draws from three global generators."""

    total: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.total += rollout.lengths.float().mean()
        noise = torch.rand(len(rollout.texts)) + random.random() * torch.from_numpy(
            np.random.rand(len(rollout.texts))
        )
        return RewardOutput(noise.float() * self.total, log={"moody/total": float(self.total)})


HEADS = {
    "vote": {"head": "ClusterVote", "weight": 0.5},
    "coin": {"head": "Random", "weight": 0.2},
    "moody": {"head": {"class_path": "test_resume.Moody"}, "weight": 0.2},
    "certainty": {"head": "MeanLogprob", "weight": 0.5},
}
LOOP = {"start": 0.05, "target": [0.2, 0.25], "bounds": [0.01, 1]}
WATCHERS: list[tuple[str, dict[str, Any]]] = [
    ("EntropyMonitor", {}),
    (
        "KLCovScheduler",
        {"weight": LOOP, "fraction": {"start": 0.02, "points": [[9, 0.01]], "shape": "cosine"}},
    ),
    ("LabelFreeStopping", {"limits": {"agreement": 1.0}, "window": 2}),
    ("HFExporter", {"monitor": "val/entropy", "mode": "min"}),
    ("CompletionWriter", {"every": 2, "show": ["tensorboard"]}),
]
GUARD = {
    "action": "rollback",
    "scale": {"learning_rate": 0.3, "rewards.certainty.weight": 0.3},
    "baseline": 1,
    "snapshot_every": 1,
    "max_actions": 9,
    # a coin is above its mean now and then, so the guard both takes snapshots and goes back to them
    "detectors": {
        "coin": {
            "metric": "reward/coin/mean",
            "side": "above",
            "bound": 0.5,
            "window": 1,
            "release": 0,
        }
    },
}


def chosen(*callbacks: tuple[str, dict[str, Any]]) -> str:
    return "--trainer.callbacks=" + json.dumps(
        [{"class_path": name, "init_args": args} for name, args in callbacks]
    )


def fit(folder: Path, *arguments: str) -> cli.RLIFCLI:
    return cli.main(["fit", *without_limit(), f"--trainer.default_root_dir={folder}", *arguments])


def without_limit() -> list[str]:
    return [
        argument
        for argument in BASE
        if "limit_train_batches" not in argument and "source.init_args.size" not in argument
    ]


def everything(run: cli.RLIFCLI) -> dict[str, torch.Tensor]:
    """Parameters, head state, optimiser and counters."""
    state = {f"module.{name}": value.clone() for name, value in run.model.state_dict().items()}
    optimizer = run.trainer.optimizers[0].state_dict()
    for index, entry in optimizer["state"].items():
        state |= {f"optimizer.{index}.{name}": value.clone() for name, value in entry.items()}
    state["lr"] = torch.tensor(
        [group["lr"] for group in optimizer["param_groups"]], dtype=torch.float64
    )
    state["places"] = torch.tensor([run.trainer.global_step, run.trainer.current_epoch])
    return state


def assert_identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert not [name for name, value in left.items() if not torch.equal(value, right[name])]


def evaluations(folder: Path) -> dict[int, Any]:
    """The entries of evaluation.json by rollout; later runs count."""
    found = {}
    for path in sorted(folder.glob("version_*/evaluation.json")):
        found |= {entry["rollouts"]: entry for entry in json.loads(path.read_text())}
    return found


CASES = {
    # 3 epochs of 2 rollouts; validations at the ends of epochs
    "epochs": ["--trainer.check_val_every_n_epoch=1"],
    # validations inside epochs of 2 rollouts, at every rollout
    "inside": ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1"],
    # validations every 3 rollouts, across epochs; the run ends in the middle of one
    "across": [
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.val_check_interval=3",
        "--trainer.max_steps=20",
    ],
    "none": ["--trainer.limit_val_batches=0"],
}
SMALL = [
    "--data.source.init_args.size=16",
    "--trainer.max_epochs=3",
    "--model.schedule.name=cosine",
    "--model.schedule.steps=24",
    "--model.optimizer.lr=0.003",
    "--model.schedule.warmup_steps=3",
    f"--model.rewards={json.dumps(HEADS)}",
]
GUARDED = [
    ("CollapseGuard", GUARD),
    *(w for w in WATCHERS if w[0] not in ("KLCovScheduler", "HFExporter")),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CollapseGuard, rollout")
@pytest.mark.parametrize(
    ("case", "callbacks", "some"),
    [
        # The mark: below, at more places; test_callbacks.py and test_hf_exporter.py have the rest.
        pytest.param("epochs", WATCHERS, (2, 3), id="epochs", marks=pytest.mark.full),
        pytest.param("inside", GUARDED, (1, 4), id="inside"),
        *(
            pytest.param(case, callbacks, range(9), id=f"{case}, every one", marks=pytest.mark.full)
            for case, callbacks in (
                *(("epochs", WATCHERS), ("inside", GUARDED)),
                *(("across", WATCHERS[:2]), ("none", GUARDED)),
            )
        ),
    ],
)
def test_every_checkpoint_leads_to_the_uninterrupted_run(tmp_path, case, callbacks, some):
    """In the middle of an epoch and at its end; before and after the guard went back."""
    arguments = [*SMALL, *CASES[case]]
    keeping = ("RunCheckpoints", {"every": 1, "keep": None})
    whole = fit(tmp_path / "whole", *arguments, chosen(*callbacks, keeping))
    expected, logged, measured = (
        everything(whole),
        rows(tmp_path / "whole"),
        evaluations(tmp_path / "whole"),
    )
    checkpoints = find_checkpoints(tmp_path / "whole")[::-1]
    assert len(checkpoints) == {"across": 5}.get(case, 6)
    if callbacks is GUARDED:
        assert "rollback" in {
            event["kind"] for event in read_events(tmp_path / "whole" / "version_0")
        }
    for number, path in enumerate(checkpoints, 1):
        if number not in some:
            continue
        folder = tmp_path / f"resumed{number}"
        resumed = fit(folder, *arguments, chosen(*callbacks, keeping), f"--ckpt_path={path}")
        if number < len(checkpoints):
            assert_identical(expected, everything(resumed))
        after = {place: row for place, row in logged.items() if place[0] >= number}
        assert (number, differences(rows(folder), after)) == (number, [])
        assert evaluations(folder) == {n: entry for n, entry in measured.items() if n > number}


def soak(folder: Path, *arguments: str) -> str:
    """What ``python scripts/soak.py``, which does more of this, prints of a small soak."""
    command = [sys.executable, "scripts/soak.py", f"--out={folder}", *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full  # test_faults.py and test_reading_and_clock.py kill at stated moments
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path):
    """Three real ``kill -9``, one in each phase."""
    assert '"differences": []' in soak(tmp_path / "soak", "--kills=3", "--seed=1")


@pytest.mark.full
def test_so_does_one_on_two_processes_with_a_guard_that_rolls_back_and_exports(tmp_path):
    """Killed while it goes back to a snapshot, and while it exports."""
    told = soak(tmp_path / "soak", "--full", "--kills=2", "--phases", "rollback", "export")
    assert '"differences": []' in told
    assert '"half_written_left": []' in told
    assert '"rollbacks": 0' not in told
