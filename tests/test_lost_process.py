"""A process that is gone: what the one that is left says, and how a shell tells faults apart that
come again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from harness.forked import on_two_processes
from harness.processes import environment
from harness.rollouts import handmade
from harness.runs import BASE, LONG
from rlif_lightning.processes.collectives import all_process_objects, all_rank_sum
from rlif_lightning.processes.ranks import gone, own_place
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.endings import ending_of_error
from rlif_lightning.running.events import read_events

DOCS = Path(__file__).parents[1] / "docs"


class Together(RewardHead):
    """Needs the other process, which dies first; with ``misuse`` it calls torch.distributed
    wrongly.
    """

    def __init__(self, misuse: bool = False):
        super().__init__()
        self.misuse = misuse

    def forward(self, rollout: Rollout) -> RewardOutput:
        if self.misuse:
            dist.all_reduce(torch.zeros(1), group="nobody")  # pyright: ignore
        if dist.get_rank() == 1:
            os._exit(0)
        return RewardOutput(all_rank_sum(rollout.lengths.float()))


def run_rank(rank: int, folder: Path) -> None:
    """One of two processes."""
    places = all_process_objects(own_place())
    assert gone(places) == []
    rollout = handmade(["an innocent text"], 1)
    with pytest.raises(
        RuntimeError, match="'mine' \\(Together\\) raised"
    ):  # this one is the head's own mistake
        RewardSet({"mine": WeightedReward(Together(misuse=True))})(rollout)
    with pytest.raises(RuntimeError) as raised:
        RewardSet({"mine": WeightedReward(Together())})(rollout)
    ending = ending_of_error(raised.value, places)
    said = [str(raised.value), ending.reason, ending.message, str(places[1][1])]
    (folder / "said").write_text("\n".join(" ".join(text.split()) for text in said))
    os._exit(0)  # nobody is left to take leave of


@pytest.mark.slow
def test_the_one_that_is_left_names_the_lost_process_and_no_completion(tmp_path):
    on_two_processes(run_rank, tmp_path)
    error, reason, message, pid = (tmp_path / "said").read_text().splitlines()
    assert "reward head" not in error
    assert "innocent" not in error
    assert reason == "lost_process"
    assert message.startswith(f"process 1 (pid {pid}) is gone: ")


def test_who_is_gone_is_told_of_this_machine_alone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    while child.poll() is None:
        pass
    here, pid = own_place()
    assert gone([(here, pid), (here, child.pid), ("elsewhere", child.pid)]) == [1]


class KillsItsLauncher(Callback):
    """In rollout 2."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == 1:
            os.kill(os.getppid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_whose_torchrun_is_gone_saves_and_ends(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command = [
        *launcher,
        "-m",
        "rlif_lightning",
        "fit",
        *BASE,
        *LONG,
        f"--trainer.default_root_dir={tmp_path}",
    ]
    command.append("--trainer.callbacks+=test_lost_process.KillsItsLauncher")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=DOCS.parent,
        env=environment(),
        timeout=1800,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in find_checkpoints(tmp_path)] == ["rollout=000002.ckpt"]
    (end,) = [event for event in read_events(tmp_path / "version_0") if event["kind"] == "end"]
    assert (end["values"]["reason"], end["values"]["exit_code"]) == ("signal", 75)
    assert "torchrun is gone: saving" in done.stderr


@pytest.mark.parametrize(("codes", "calls"), [([1, 75, 0], 3), ([2], 1), ([1, 130], 2)])
def test_the_loop_of_the_docs_ends_where_a_repetition_is_of_no_use(tmp_path, codes, calls):
    text = (DOCS / "never-lose-a-run.md").read_text()
    (loop,) = re.findall(r"^while .*?^done$", text, re.S | re.M)
    command = "python -m rlif_lightning fit --config my.yaml --ckpt_path auto"
    assert command in loop
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    step = "{ code=$(sed -n 1p codes); sed -i 1d codes; echo >> calls; (exit $code); }"
    script = loop.replace(command, step).replace("sleep 10", "sleep 0")
    subprocess.run(["sh", "-c", script], cwd=tmp_path, timeout=300, check=False)
    assert len((tmp_path / "calls").read_text().splitlines()) == calls
