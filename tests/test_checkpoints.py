"""RunCheckpoints in real runs: what is kept, what is best, which run goes on from which, and saves
that fail.
"""

from __future__ import annotations

import json
import logging
import resource
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from harness.runs import (
    BASE,
    FEW,
    FOUR,
    assert_same,
    checkpoint_names,
    differences,
    fit,
    parameters,
    rows,
    saving,
)
from rlif_lightning import cli
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.running.checkpoint_faults import why_unusable
from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.events import read_events
from rlif_lightning.running.run_checkpoints import RunCheckpoints


class Broken(RewardHead):
    """Raises in its third rollout, the first time that it is asked for it."""

    fails = True

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.calls += 1
        if int(self.calls) == 3 and Broken.fails:
            raise OSError("the judge's server is down")
        return RewardOutput(rollout.lengths.float())


class FullDisk(Callback):
    """From rollout ``rollout`` on, this process can write no file larger than half a megabyte."""

    def __init__(self, rollout: int):
        self.rollout = rollout

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == self.rollout - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, resource.RLIM_INFINITY))


class Poison(Callback):
    """A gradient that is NaN from rollout ``rollout`` on."""

    def __init__(self, rollout: int):
        self.rollout = rollout

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if int(pl_module.num_rollouts) == self.rollout - 1:
            next(pl_module.policy.parameters()).register_hook(
                lambda gradient: gradient * float("nan")
            )


@pytest.mark.slow
def test_the_last_ones_are_kept_and_the_end_is_saved(tmp_path):
    fit(tmp_path, saving(every=1, keep=2), *FOUR)
    assert checkpoint_names(tmp_path / "version_0") == [
        "rollout=000003.ckpt",
        "rollout=000004.ckpt",
    ]
    fit(tmp_path, saving(every=3), *FOUR)
    assert checkpoint_names(tmp_path / "version_1") == [
        "rollout=000003.ckpt",
        "rollout=000004.ckpt",
    ]
    fit(tmp_path, *FOUR)
    assert checkpoint_names(tmp_path / "version_2") == ["rollout=000004.ckpt"]
    assert all(why_unusable(path) is None for path in find_checkpoints(tmp_path))


@pytest.mark.full  # test_best_value.py judges; the last ones are kept: above
def test_best_is_the_run_at_its_best(tmp_path):
    run = fit(tmp_path, saving(monitor="policy/entropy", mode="max"), *FOUR)
    entropies = [
        float(row["policy/entropy"])
        for place, row in sorted(rows(tmp_path).items())
        if not place[1]
    ]
    best = torch.load(tmp_path / "version_0" / "checkpoints" / "best.ckpt", weights_only=True)
    assert int(best["state_dict"]["num_rollouts"]) == entropies.index(max(entropies)) + 1
    assert run.trainer.callbacks
    evaluated = cli.main(
        ["validate", *base(), f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=best"]
    )
    assert int(evaluated.model.num_rollouts) == int(best["state_dict"]["num_rollouts"])


def base() -> list[str]:
    return [argument for argument in BASE if "compare" not in argument]


@pytest.mark.slow
def test_auto_goes_on_in_the_place_of_the_run_before(tmp_path, long_run):
    """What the earlier lives kept is dropped as if it had been one run; a run that is over stays
    over.
    """
    for epochs in (1, 2, 2):
        settings = [saving(every=1), f"--trainer.max_epochs={epochs}", "--ckpt_path=auto"]
        run = fit(tmp_path / "lives", *FOUR, *settings)
    assert run.trainer.global_step == 16
    assert_same(long_run[0], parameters(run))
    kept = [path.name for path in find_checkpoints(tmp_path / "lives")]
    assert kept == ["rollout=000004.ckpt", "rollout=000003.ckpt"]
    assert differences(rows(long_run[1]), rows(tmp_path / "lives")) == []


@pytest.mark.slow
def test_a_run_from_a_named_checkpoint_leaves_the_other_one_alone(tmp_path):
    fit(tmp_path, *FEW, saving(every=1, keep=2))
    before = checkpoint_names(tmp_path / "version_0")
    fit(tmp_path, saving(every=1, keep=1), *FOUR, f"--ckpt_path={find_checkpoints(tmp_path)[0]}")
    assert (
        checkpoint_names(tmp_path / "version_0")
        == before
        == ["rollout=000001.ckpt", "rollout=000002.ckpt"]
    )


@pytest.mark.slow
def test_a_head_that_raises_costs_nothing_that_was_saved(tmp_path):
    rewards = {
        "vote": {"head": "ClusterVote"},
        "judge": {"head": {"class_path": "test_checkpoints.Broken"}},
    }
    arguments = [f"--model.rewards={json.dumps(rewards)}", saving(every=1), *FOUR]
    Broken.fails = False
    whole = fit(tmp_path / "whole", *arguments)
    Broken.fails = True
    with pytest.raises(
        RuntimeError, match=r"'judge' \(Broken\) raised OSError: the judge's server is down"
    ):
        fit(tmp_path / "lives", *arguments)
    assert checkpoint_names(tmp_path / "lives" / "version_0") == [
        "rollout=000001.ckpt",
        "rollout=000002.ckpt",
    ]
    Broken.fails = False
    resumed = fit(tmp_path / "lives", *arguments, "--ckpt_path=last")
    assert_same(parameters(whole), parameters(resumed))
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []


@pytest.mark.slow
def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(tmp_path, long_run):
    full = (
        '--trainer.callbacks+={"class_path": "test_checkpoints.FullDisk", "init_args":'
        ' {"rollout": 3}}'
    )
    try:
        told = (
            r"rollout=000003.ckpt could not be written .*rollout=000002.ckpt, saved before it,"
            r" is"
            r" whole"
        )
        with pytest.raises(RuntimeError, match=told):
            fit(tmp_path, saving(every=1), full, *FOUR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert checkpoint_names(tmp_path / "version_0") == [
        "rollout=000001.ckpt",
        "rollout=000002.ckpt",
    ]  # and nothing half-written
    assert_same(long_run[0], parameters(fit(tmp_path, *FOUR, "--ckpt_path=last")))


# test_run.py resumes from a checkpoint that another callback saved.
@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_gradient_that_is_not_finite_ends_the_run_and_costs_nothing_that_was_saved(
    tmp_path, request, goes_on
):
    poisoned = (
        '--trainer.callbacks+={"class_path": "test_checkpoints.Poison", "init_args":'
        ' {"rollout":'
        " 3}}"
    )
    with pytest.raises(
        RuntimeError, match="the gradient of rollout 2 is not finite; what was sampled was finite"
    ):
        fit(tmp_path, saving(every=1), poisoned, *FOUR)
    assert read_events(tmp_path / "version_0")[-1]["values"] == {
        "reason": "non_finite_gradient",
        "exit_code": 1,
        "planned": 4,
    }
    if goes_on:
        whole, _ = request.getfixturevalue("long_run")
        assert_same(whole, parameters(fit(tmp_path, *FOUR, "--ckpt_path=last")))


@pytest.mark.slow
def test_lora_goes_on_from_its_checkpoint(tmp_path):
    pytest.importorskip("peft")
    lora = [
        '--model.policy.lora={"rank": 4, "alpha": 8}',
        "--model.optimizer.lr=0.01",
        *FOUR,
        saving(every=1),
    ]
    whole = fit(tmp_path / "whole", *lora, "--ckpt_path=auto")
    path = tmp_path / "whole" / "version_0" / "checkpoints" / "rollout=000003.ckpt"
    assert_same(
        parameters(whole), parameters(fit(tmp_path / "resumed", *lora, f"--ckpt_path={path}"))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "must be at least 1"),
        ({"keep": 0}, "keep=null keeps all"),
        ({"mode": "up"}, "mode='up'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        RunCheckpoints(**settings)


def test_a_monitor_that_is_never_logged_is_told(tmp_path, caplog):
    logging.getLogger("lightning.pytorch").propagate = True
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match="monitor='val/luck' was never logged"),
    ):
        fit(tmp_path, saving(monitor="val/luck"))
    assert "RunCheckpoints: monitor='val/luck' is no figure of evaluations here" in caplog.text
