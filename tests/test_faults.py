"""Faults that are really caused in runs of two processes or on a small disk, and what is lost:
nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from harness.files import ROOT
from harness.launches import resumed_and_whole
from harness.processes import environment, two_ranks
from harness.runs import BASE, FEW, FOUR, differences, fit, metrics, rows, saving
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.running.checkpoint_search import find_checkpoints

FSDP2 = ["--config=configs/strategy/fsdp2.yaml", "--trainer.devices=2"]
EVERY = saving(every=1)


class BrokenOn(RewardHead):
    """Raises in its second rollout on one rank, while a file is there."""

    def __init__(self, rank: int, while_there: str):
        super().__init__()
        self.rank, self.while_there = rank, Path(while_there)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.calls += 1
        if int(self.calls) == 2 and dist.get_rank() == self.rank and self.while_there.exists():
            raise OSError("the judge's server is down")
        return RewardOutput(rollout.lengths.float())


class KilledWhileWriting(Callback):
    """One rank dies as soon as rollout 2's checkpoint has begun to appear."""

    def __init__(self, rank: int):
        self.rank = rank

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == 1 and trainer.global_rank == self.rank:
            folder = Path(trainer.default_root_dir)
            threading.Thread(target=self._watch, args=(folder,), daemon=True).start()

    @staticmethod
    def _watch(folder: Path) -> None:
        # One folder alone is read: those of shards in it may go at any time.
        while not [*folder.glob("version_*/checkpoints/*rollout=000002*")]:
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_head_that_raises_on_one_of_two_ranks_ends_both(tmp_path, rank):
    broken = tmp_path / "broken"
    broken.touch()
    head = {
        "class_path": "test_faults.BrokenOn",
        "init_args": {"rank": rank, "while_there": str(broken)},
    }
    rewards = {"vote": {"head": "ClusterVote"}, "judge": {"head": head}}
    arguments = [EVERY, f"--model.rewards={json.dumps(rewards)}"]
    failed = two_ranks(tmp_path / "lives", *arguments)
    assert failed.returncode not in (0, 75)
    assert "'judge' (BrokenOn) raised OSError: the judge's server is down" in failed.stderr
    assert [path.name for path in find_checkpoints(tmp_path / "lives")] == ["rollout=000001.ckpt"]
    if rank:  # that it goes on is asked once, in the full tier; shards that were cut off do, below
        return
    broken.unlink()
    resumed_and_whole(tmp_path, *arguments)
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []


@pytest.mark.full  # torn folders: test_checkpoint_files.py; both end: above
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_rank_killed_while_shards_are_written_costs_nothing_that_was_saved(tmp_path, rank):
    kill = {"class_path": "test_faults.KilledWhileWriting", "init_args": {"rank": rank}}
    killed = two_ranks(
        tmp_path / "lives", *FSDP2, EVERY, f"--trainer.callbacks+={json.dumps(kill)}"
    )
    assert killed.returncode not in (0, 75)
    resumed_and_whole(tmp_path, *FSDP2, EVERY)
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []
    left = [path.name for path in (tmp_path / "lives").rglob("checkpoints/*")]
    assert not [name for name in left if "rollout=000002" in name], (
        left
    )  # neither the half one nor an old one


# What runs on the small disk: until it is full, what lies there then, and on a larger one to the
# end.
SMALL_DISK = """
mount -t tmpfs -o size={size} none {disk} || exit 99
{fit} --ckpt_path=auto > {out}/first.log 2>&1; echo $? > {out}/first
find {disk} -path '*checkpoints/*' -maxdepth 3 -printf '%f\\n' > {out}/left
mount -o remount,size=200m {disk}
{fit} --ckpt_path=auto > {out}/second.log 2>&1; echo $? > {out}/second
cp -r {disk}/. {out}/lives
"""
CAN_MOUNT = (
    shutil.which("unshare")
    and not subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True
    ).returncode
)


@pytest.mark.full  # test_full_disk.py has checkpoints that find no room
@pytest.mark.skipif(not CAN_MOUNT, reason="no file system can be mounted here")
@pytest.mark.parametrize(("processes", "size"), [(1, "12m"), (2, "13m")])
def test_a_disk_that_is_full_costs_nothing_that_was_saved(tmp_path, long_run, processes, size):
    """Room for two checkpoints of 5.3 MB and not for the third; sharded ones with two processes."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    strategy = FSDP2 if processes == 2 else []
    arguments = ["fit", *BASE, *FOUR, *strategy, EVERY, f"--trainer.default_root_dir={disk}"]
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "rlif_lightning", *arguments])
    script = SMALL_DISK.format(size=size, disk=disk, out=out, fit=command)
    one_thread = environment()
    subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=ROOT, env=one_thread, timeout=1800, check=True
    )
    assert (out / "first").read_text() != "0\n"
    assert "rollout=000003.ckpt could not be written" in (out / "first.log").read_text()
    assert sorted((out / "left").read_text().split()) == [
        "rollout=000001.ckpt",
        "rollout=000002.ckpt",
    ]
    assert (out / "second").read_text() == "0\n", (out / "second.log").read_text()[-2000:]
    whole = long_run[1]
    if processes == 2:
        whole = tmp_path / "whole"
        assert two_ranks(whole, *FEW, *FSDP2).returncode == 0
    assert differences(rows(whole), rows(out / "lives")) == []


@pytest.mark.full  # test_math_verify_process.py has each trap
def test_an_answer_that_hangs_the_symbolic_checker_is_an_answer_that_is_wrong(tmp_path):
    """Every second gold answer would take for ever to evaluate; the run is the one with a plain
    wrong answer there.
    """
    for name, hostile in (("hostile", "9^{9^{9^{9}}}"), ("plain", "x+3")):
        problems = [
            {"question": f"{n}+{n + 1}+1=", "answer": hostile if n % 2 else str(2 * n + 2)}
            for n in range(2, 18)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        source = {
            "class_path": "LocalFiles",
            "init_args": {"train": str(path), "validation": str(path)},
        }
        gold = '--model.rewards={"gold": {"head": "GoldAnswer"}}'
        fit(tmp_path / name, f"--data.source={json.dumps(source)}", gold)
    assert metrics(tmp_path / "hostile") == metrics(tmp_path / "plain")
    assert float(metrics(tmp_path / "plain")[0]["reward/gold/mean"]) > 0
