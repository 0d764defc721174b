"""Runs with replay: overlay, resume, fork, rollback, two processes, and a kill."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import CollapseGuard
from harness.files import ROOT
from harness.forked import run_module
from harness.launches import BASE as DISTRIBUTED
from harness.launches import (
    assert_same_runs,
    assert_same_weights,
    assert_two_are_one,
    launch,
    on,
    weights,
)
from harness.processes import environment
from harness.python_runs import Run, at, data, module, sums, trainer
from harness.runs import BASE, LONG, adding, differences, fit, parameters, rows, saving
from rlif_lightning import PromptData, Replay
from rlif_lightning.running.checkpoint_faults import why_unusable

REPLAY = Replay(groups=2, max_age=2)


def problems() -> PromptData:
    """Six groups of four, most of which have an advantage."""
    return data(source=sums(24), group_size=4, prompts_per_rollout=6)


def buffer(run: Run) -> list[dict[str, Any]]:
    return run.module.replay_buffer.state_dict()


def assert_same(left: Run, right: Run) -> None:
    """Parameters, optimiser and buffer, bit for bit."""
    states = [run.state() for run in (left, right)]
    for one, other in zip(buffer(left), buffer(right), strict=True):
        states[0] |= {f"{len(states[0])}.{k}": torch.as_tensor(v) for k, v in one.items()}
        states[1] |= {f"{len(states[1])}.{k}": torch.as_tensor(v) for k, v in other.items()}
    assert states[0].keys() == states[1].keys()
    assert not [k for k, value in states[0].items() if not torch.equal(value, states[1][k])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """Four rollouts with replay, a checkpoint after each."""
    return Run(tmp_path_factory.mktemp("whole"), 4, module(replay=REPLAY), problems())


@pytest.mark.full  # the resumed run replays; test_replay.py has the figures
def test_the_overlay_trains_and_logs(tmp_path):
    overlay = f"--config={ROOT / 'configs' / 'objectives' / 'replay.yaml'}"
    run = fit(tmp_path, overlay, *LONG)
    assert run.model.replay_buffer.settings == Replay(8, 2)
    logged = [row for row in rows(tmp_path).values() if "replay/groups" in row]
    assert [float(row["replay/groups"]) for row in logged][:2] == [0, min(8, held(logged[0]))]
    assert 1 < float(logged[-1]["replay/age"]) < 2
    assert float(logged[-1]["replay/ratio"]) == pytest.approx(1, abs=0.1)
    assert float(logged[-1]["replay/kl"]) > 0


@pytest.mark.slow
def test_kl_cov_at_one_update_has_old_tokens_to_act_on(tmp_path):
    """Without replay that is refused, since nothing differs from the policy that sampled."""
    once = "--model.update.updates_per_rollout=1"
    kind = ["--model.objective=KLCov", "--model.objective.fraction=0.2"]
    ends = {}
    for weight in (0.0, 50.0):
        given = ["--model.replay.groups=8", once, *kind, f"--model.objective.weight={weight}"]
        ends[weight] = parameters(fit(tmp_path / str(weight), *given))
    assert any(not torch.equal(value, ends[50.0][name]) for name, value in ends[0.0].items())


def held(row: dict[str, str]) -> float:
    """Groups of the first rollout with an advantage: certainty tells all completions apart."""
    assert float(row["reward/certainty/group_std"]) > 0
    return 8


def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path):
    folder = whole.folder / "checkpoints"
    for rollout in (1, 3):
        saved = torch.load(at(folder, rollout), weights_only=True)["replay"]
        assert len(saved) == 2 * min(rollout, REPLAY.max_age)
    assert why_unusable(at(folder, 3)) is None
    again = Run(tmp_path, 4, module(replay=REPLAY), problems(), ckpt_path=at(folder, 3))
    assert again.said() == []
    assert_same(whole, again)


def test_a_buffer_that_begins_empty_is_announced(whole, tmp_path, capsys):
    plain = Run(tmp_path / "plain", 2, module(), problems())
    source = at(plain.folder / "checkpoints", 2)
    assert "replay" not in torch.load(source, weights_only=True)
    run = Run(tmp_path / "older", 3, module(replay=REPLAY), problems(), ckpt_path=source)
    said = "the checkpoint has no replay buffer: it begins empty"
    assert said in run.said()
    assert f"resumed: {said}" in capsys.readouterr().out
    assert any(text.startswith("model.replay: null -> ") for text in run.said())
    assert float(run.trainer.callback_metrics["replay/groups"]) == 0
    source = at(whole.folder / "checkpoints", 3)
    run = Run(
        tmp_path / "size",
        4,
        module(replay=REPLAY),
        data(source=sums(24), group_size=3, prompts_per_rollout=6),
        ckpt_path=source,
    )
    said = "the replay buffer's groups have 4 completions and new ones 3: it begins empty"
    assert said in run.said()
    assert float(run.trainer.callback_metrics["replay/groups"]) == 0
    watching = trainer(tmp_path / "validated", 1, limit_val_batches=1)
    source = at(plain.folder / "checkpoints", 2)
    capsys.readouterr()
    watching.validate(module(replay=REPLAY), problems(), source, verbose=False, weights_only=True)
    assert "replay buffer" not in capsys.readouterr().out
    source = at(whole.folder / "checkpoints", 3)
    off = Run(tmp_path / "off", 4, module(), problems(), ckpt_path=source)
    assert [text.split(" (")[0] for text in off.said()] == [
        "model.replay: {groups: 2, max_age: 2} -> null"
    ]


@pytest.mark.slow
def test_a_fork_begins_with_an_empty_buffer(whole, tmp_path):
    source = at(whole.folder / "checkpoints", 3)
    run = Run(tmp_path, 1, module(replay=REPLAY), problems(), fork_from=source)
    assert float(run.trainer.callback_metrics["replay/groups"]) == 0
    assert {group["rollout_number"] for group in buffer(run)} == {0}


class Watching(Callback):
    """Remembers the rollouts whose groups lie in the buffer after each rollout."""

    def __init__(self) -> None:
        self.held: list[set[int]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.held.append({group.rollout_number for group in pl_module.replay_buffer.groups})


@pytest.mark.filterwarnings("ignore:CollapseGuard, rollout")
def test_a_rollback_drops_what_the_policy_that_is_left_behind_has_drawn(tmp_path):
    """Alarms in rollouts 2 and 4; rollouts 3 and 5 go on from the snapshot, with nothing old."""
    long = {"metric": "rollout/length", "side": "above", "bound": -1.0, "window": 1, "release": 0}
    guard = CollapseGuard(
        action="rollback", baseline=1, snapshot_every=1, max_actions=9,
        detectors={"long": {**long, "side": "below", "bound": 1e3, "factor": 1e6}},
    )  # fmt: skip
    seen = Watching()
    run = Run(tmp_path, 5, module(replay=Replay(2, 5)), problems(), guard, seen)
    rollbacks = len(run.said("rollback"))
    assert rollbacks >= 1
    assert seen.held.count(set()) == rollbacks
    last = max(number for number, held in enumerate(seen.held) if not held)
    assert all(min(held) > last for held in seen.held[last + 1 :])


def test_settings_that_cannot_be_right_are_refused_before_anything_is_sampled(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, "--model.replay.groups=9")
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "model.replay.groups=9: 1 rollouts (model.replay.max_age) of" in said
    assert "data.prompts_per_rollout=8 never have so many; set it to 8 or less" in said


ARGUMENTS = [
    *DISTRIBUTED,
    "--trainer.max_epochs=2",
    "--trainer.limit_val_batches=0",
    "--model.replay={groups: 3, max_age: 2}",
    "--model.objective=KLCov",
    "--model.objective.fraction=0.2",
    "--model.objective.rank_by=current",
    "--model.objective.reference_kl.weight=0.1",
    "--model.update.micro_batch_tokens=200",
    saving(every=1, keep=None),
]


def checkpoint(folder: Path, name: str, rollout: int = 2) -> str:
    return f"--ckpt_path={at(folder / name / 'version_0' / 'checkpoints', rollout)}"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Three old groups on two ranks."""
    logged = assert_two_are_one(tmp_path, ARGUMENTS)
    assert [row["replay/groups"] for row in logged] == [0, 3, 3, 3]


@pytest.mark.full  # a resumed run: above, in one process
def test_two_processes_are_one_under_every_strategy_and_resume_each_other(tmp_path):
    """Files and folders of shards."""
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, {"whole": ARGUMENTS})
    launch(
        two,
        {
            "ddp": [*ARGUMENTS, *on("ddp", 2)],
            "fsdp2": [*ARGUMENTS, *on("fsdp2", 2)],
            "tp": [*ARGUMENTS, *on("tp", 2)],
            "from one": [*ARGUMENTS, *on("ddp", 2), checkpoint(one, "whole")],
        },
        forks=2,
    )
    shards = at(two / "fsdp2" / "version_0" / "checkpoints", 2)
    assert shards.is_dir()
    assert why_unusable(shards) is None
    launch(
        one,
        {
            "from ddp": [*ARGUMENTS, checkpoint(two, "ddp")],
            "from shards": [*ARGUMENTS, *on("fsdp2", 1), checkpoint(two, "fsdp2")],
        },
    )
    for name in ("ddp", "fsdp2", "tp"):
        assert_same_runs((two, name), (one, "whole"))
    assert_same_weights(weights(two, "from one"), weights(one, "whole"))
    for name in ("from ddp", "from shards"):
        assert_same_weights(weights(one, name), weights(one, "whole"))


@pytest.mark.full  # a resumed run: above; test_episode_runs.py kills one
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    arguments = [
        *("fit", *BASE, *LONG, "--model.replay={groups: 4, max_age: 2}", saving(every=1)),
        adding("harness.killed.Killed", while_there=str(mark)),
        "--ckpt_path=auto",
    ]

    def run(name: str) -> int:
        given = [*arguments, f"--trainer.default_root_dir={tmp_path / name}"]
        return run_module("rlif_lightning", given, environment()).returncode

    assert run("lives") == -signal.SIGKILL
    mark.unlink()
    assert run("lives") == run("whole") == 0
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []
    last = [
        torch.load(next((tmp_path / name).rglob("rollout=000004.ckpt")), weights_only=True)
        for name in ("whole", "lives")
    ]
    for one, other in zip(*(each["replay"] for each in last), strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)
    left, right = (each["state_dict"] for each in last)
    assert not [name for name in left if not torch.equal(left[name], right[name])]
