"""Runs with a rubric: overlay, null setting, resume, dynamic sampling, replay, two processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.files import ROOT
from harness.forked import run_module
from harness.launches import BASE as DISTRIBUTED
from harness.launches import assert_two_are_one
from harness.processes import environment
from harness.python_runs import Run, at, data, module, sums
from harness.runs import BASE, adding, differences, fit, rows, saving
from rlif_lightning import (
    GRPO,
    DynamicSampling,
    GoldAnswer,
    Length,
    Matches,
    Replay,
    Rubric,
    Scored,
    WeightedCriterion,
    WeightedReward,
)
from rlif_lightning.running.checkpoint_faults import read_rest

OVERLAY = f"--config={ROOT / 'configs' / 'related' / 'pow3r.yaml'}"
SMALL = "--data.source.init_args.size=16"  # a visit is two rollouts
RUN = [OVERLAY, SMALL, "--trainer.max_epochs=2", "--trainer.limit_val_batches=0"]


def rubric(**settings: Any) -> Rubric:
    criteria = {
        "equals": WeightedCriterion(Matches("="), 2.0, "form"),
        "plus": WeightedCriterion(Matches(r"\+"), 1.0, "form"),
        "right": WeightedCriterion(Scored(GoldAnswer()), 3.0, "result"),
        "long": WeightedCriterion(Scored(Length(), 4), -1.0, "result"),
        "never": WeightedCriterion(Matches("zzz"), 1.0, "result"),
    }
    return Rubric(criteria, **settings)


def made(head: Rubric, folder: Path, rollouts: int = 5, **settings: Any) -> Run:
    """Five rollouts are two and a half visits of the eight problems."""
    way = {"ckpt_path": settings.pop("ckpt_path")} if "ckpt_path" in settings else {}
    model = module(rewards={"rubric": WeightedReward(head)}, advantage=GRPO(), **settings)
    problems = data(source=sums(8), group_size=6, prompts_per_rollout=4)
    return Run(folder, rollouts, model, problems, **way)


def factors(run: Run) -> torch.Tensor:
    """Each problem's epoch, factors in it and factors after it, ``[8, 11]``."""
    return run.module.prompt_table.columns["rubric/factors"].numbers(range(8), [])


def assert_equal(one: Run, other: Run) -> None:
    left, right = one.state(), other.state()
    assert not [name for name, value in left.items() if not torch.equal(value, right[name])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return made(rubric(), tmp_path_factory.mktemp("whole"))


@pytest.mark.full  # the factors of a run: below
def test_the_overlay_trains_and_weighs_by_the_previous_visit(tmp_path):
    run = fit(tmp_path, *RUN)
    head = run.model.rewards.heads["rubric"]
    assert (head.weighting, head.strength, head.rate, head.bounds) == (
        "pow3r",
        0.5,
        0.5,
        (0.67, 1.5),
    )
    assert len(head.settings) == 8
    assert run.model.advantage == GRPO()
    logged = [row for row in rows(tmp_path).values() if "rubric/factor_std" in row]
    assert [float(row["rubric/factor_mean"]) == 1 for row in logged] == [True] * 2 + [False] * 2
    assert [float(row["rubric/factor_std"]) > 0 for row in logged] == [False] * 2 + [True] * 2
    assert float(logged[-1]["criterion/explained"]) == 0  # out of reach
    assert float(logged[-1]["criterion/answered"]) > 0.9
    assert 0 < float(logged[-1]["overclaim/share"]) < 1
    assert float(run.trainer.callback_metrics["policy/grad_norm"]) > 0


@pytest.mark.slow
def test_one_epoch_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit):
        fit(tmp_path, OVERLAY, SMALL, "--trainer.max_epochs=1")
    said = capfd.readouterr().err
    assert "this run visits each problem once" in said
    assert "weighting=diva" in said


@pytest.mark.slow
def test_the_factors_of_a_run(whole):
    """Rollout 4 is of the third epoch: its problems have the factors of the second in force."""
    state = factors(whole)
    assert sorted(state[:, 0].tolist()) == [1] * 4 + [2] * 4
    assert (state[:, 1:].sub(1).abs().amax(1) > 0).all()
    assert ((state[:, 1:] >= 0.67) & (state[:, 1:] <= 1.5)).all()


def test_a_predictions_scores_have_the_criterias_own_weights(whole):
    sampled = next(iter(whole.trainer.datamodule.train_dataloader()))
    static = rubric(weighting="category")
    records = whole.module.predict_step(sampled, 0)
    head = whole.module.rewards
    rollout = whole.module.engine.generate(sampled, 6, whole.module.sampling, 2**62 + 1)
    head.eval()
    assert torch.equal(head(rollout)["rubric"].scores, static(rollout).scores)
    assert len(records) == 24
    head.train()


@pytest.mark.slow
@pytest.mark.parametrize("rollout", [*(pytest.param(n, marks=pytest.mark.full) for n in (1, 2)), 3])
def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path, rollout):
    path = at(whole.folder / "checkpoints", rollout)
    again = made(rubric(), tmp_path, ckpt_path=path)
    assert_equal(whole, again)
    assert torch.equal(factors(whole), factors(again))


def test_a_checkpoint_of_other_criteria_is_refused(whole, tmp_path):
    head = rubric()
    names = [*head.settings]
    swapped = {name: head.settings[name] for name in [names[1], names[0], *names[2:]]}
    path = at(whole.folder / "checkpoints", 2)
    with pytest.raises(ValueError, match="column 'rubric/factors' is of Rubric \\(equals, plus"):
        made(Rubric(swapped), tmp_path, ckpt_path=path)


@pytest.mark.full  # test_rubric.py has the same scores
def test_strength_0_in_one_category_is_the_static_rubric_bit_for_bit(tmp_path):
    """POW3R with strength 0 in a run of a visit and a half."""
    states = []
    for name, settings in (("null", {"strength": 0.0}), ("static", {"weighting": "static"})):
        one = {
            n: WeightedCriterion(each.criterion, each.weight)
            for n, each in rubric().settings.items()
        }
        states.append(made(Rubric(one, **settings), tmp_path / name, 3))
    assert_equal(*states)


@pytest.mark.slow
def test_weightings_train_differently(whole, tmp_path):
    others = [
        made(rubric(**settings), tmp_path / str(n))
        for n, settings in enumerate(
            [
                {"weighting": "category"},
                {"weighting": "static"},
                {"weighting": "diva"},
                {"weighting": "static", "dropout": 0.4},
            ]
        )
    ]
    ends = [run.state() for run in (whole, *others)]
    for n, one in enumerate(ends):
        for other in ends[n + 1 :]:
            assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_dynamic_sampling_and_replay_go_on_bit_for_bit(tmp_path):
    given = {"dynamic_sampling": DynamicSampling(max_draws=2), "replay": Replay(2, 2)}
    run = made(rubric(dropout=0.4), tmp_path / "whole", **given)
    assert float(run.trainer.callback_metrics["dynamic/signal"]) > 0
    for rollout in (2, 3):
        path = at(run.folder / "checkpoints", rollout)
        again = made(rubric(dropout=0.4), tmp_path / str(rollout), ckpt_path=path, **given)
        assert_equal(run, again)
        assert torch.equal(factors(run), factors(again))
    # Only the batch's own groups are visits: every problem has one in each epoch.
    assert sorted(factors(run)[:, 0].tolist()) == [1] * 4 + [2] * 4


@pytest.mark.full  # a resumed run: above; test_episode_runs.py kills one
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    arguments = ["fit", *BASE, *RUN, saving(every=1)]
    arguments += [adding("harness.killed.Killed", while_there=str(mark)), "--ckpt_path=auto"]

    def run(name: str) -> int:
        given = [*arguments, f"--trainer.default_root_dir={tmp_path / name}"]
        return run_module("rlif_lightning", given, environment()).returncode

    assert run("lives") == -signal.SIGKILL
    mark.unlink()
    assert run("lives") == run("whole") == 0
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []
    tables = [
        torch.load(next((tmp_path / name).rglob("rollout=000004.ckpt")), weights_only=True)
        for name in ("whole", "lives")
    ]
    one, other = (each["prompt_table"]["rubric/factors"] for each in tables)
    assert one["rows"].tolist() == other["rows"].tolist() == [*range(16)]
    assert torch.equal(one["values"], other["values"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", pytest.param("tp", marks=pytest.mark.full)])
def test_two_processes_are_one(tmp_path, kind):
    given = [*DISTRIBUTED, *RUN]
    given += ["--model.replay={groups: 2, max_age: 2}", saving(every=1, keep=None)]
    logged = assert_two_are_one(tmp_path, given, kind)
    assert float(logged[-1]["rubric/factor_std"]) > 0
    paths = [at(tmp_path / name / "version_0" / "checkpoints", 4) for name in ("one", kind)]
    one, other = (read_rest(path)["prompt_table"]["rubric/factors"] for path in paths)
    assert one["rows"].tolist() == other["rows"].tolist()
    torch.testing.assert_close(one["values"], other["values"], rtol=0, atol=1e-9)
