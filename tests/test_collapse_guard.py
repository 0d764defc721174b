"""CollapseGuard in real runs of the command line: what it tells and what each action does."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import CollapseGuard
from callbacks.events import read_events
from callbacks.guard import kinds_of_run
from harness.python_runs import module
from harness.runs import ALWAYS, FEW, TINY, assert_same, callback_of, column, parameters, run_with
from rlif_lightning import (
    ClusterVote,
    DynamicSampling,
    Gate,
    GoldAnswer,
    KLCov,
    MeanLogprob,
    ReferenceKL,
    WeightedReward,
    cli,
)
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.rewards.voting import vote_shares

THREE = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1"]  # rollouts
CALM = ["--trainer.callbacks+=" + json.dumps({"class_path": "test_collapse_guard.Recorder"})]


class Recorder(Callback):
    """Keeps a copy of the parameters after each rollout, once the callbacks before it are done."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.texts: list[tuple[str, ...]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.after.append(
            {name: value.clone() for name, value in pl_module.policy.state_dict().items()}
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.after.append(
            {name: value.clone() for name, value in pl_module.policy.state_dict().items()}
        )
        self.texts.append(tuple(outputs["rollout"].texts))


def guarded(
    folder: Path, action: str, *arguments: str, rollouts: int = 3, **settings
) -> tuple[cli.RLIFCLI, list[dict]]:
    """A run whose guard speaks in rollout 2, and its events."""
    detectors = {name: None for name in CollapseGuard().detectors} | {"mine": ALWAYS}
    settings = {"action": action, "baseline": 1, "detectors": detectors, **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CollapseGuard, rollout")
        given = [*TINY, *CALM, *arguments]
        run = run_with(folder, "CollapseGuard", *given, rollouts=rollouts, **settings)
    return run, [
        event for event in read_events(Path(run.trainer.log_dir)) if event["kind"] != "end"
    ]


@pytest.mark.slow
def test_warn_tells_once_and_changes_nothing(tmp_path, long_run):
    detectors = dict.fromkeys(CollapseGuard().detectors) | {"mine": ALWAYS}
    settings = {"baseline": 1, "detectors": detectors}
    with pytest.warns(UserWarning, match="CollapseGuard, rollout 2: mine: rollout/length") as told:
        run = run_with(tmp_path / "guard", "CollapseGuard", *FEW, rollouts=4, **settings)
    assert sum("mine:" in str(warning.message) for warning in told) == 1
    assert_same(long_run[0], parameters(run))
    (event,) = [
        e for e in read_events(Path(run.trainer.log_dir)) if e["values"].get("detector") == "mine"
    ]
    assert set(event) == {"step", "rollout", "source", "kind", "message", "values"}
    assert (event["step"], event["rollout"], event["source"], event["kind"]) == (
        8,
        2,
        "CollapseGuard",
        "alarm",
    )
    assert "at the start of the run it was" in event["message"]
    assert "Always. This is token-space collapse" in event["message"]
    assert event["values"]["limit"] == 1000
    assert event["values"]["value"] == pytest.approx(
        column(tmp_path / "guard", "rollout/length")[1]
    )


@pytest.mark.slow
def test_figures_are_logged_with_and_without_a_vote(tmp_path):
    run_with(tmp_path / "vote", "CollapseGuard", *TINY, rollouts=1)
    gold = '--model.rewards={"gold": {"head": "GoldAnswer"}}'
    run_with(tmp_path / "gold", "CollapseGuard", *TINY, gold, rollouts=1)
    for folder in ("vote", "gold"):
        for name in (
            "rollout/repetition",
            "vote/top_answer",
            "guard/vote_alignment",
            "guard/certainty_share",
        ):
            assert len(column(tmp_path / folder, name)) == 1, name
    assert len(column(tmp_path / "gold", "vote/unanimous")) == 1
    assert (
        column(tmp_path / "gold", "rollout/parseable")[0]
        == column(tmp_path / "vote", "rollout/parseable")[0]
    )
    assert column(tmp_path / "gold", "guard/certainty_share") == [0]
    share = column(tmp_path / "vote", "reward/certainty/share")
    assert column(tmp_path / "vote", "guard/certainty_share") == pytest.approx(share)


class ByParity(RewardHead):
    """Votes on whether a completion's length is even."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        answers = ["odd" if length % 2 else "even" for length in rollout.lengths.tolist()]
        return RewardOutput(vote_shares(answers, rollout.group_size), answers=answers)


@pytest.mark.slow
def test_what_a_head_votes_on_is_what_is_judged(tmp_path):
    """Two answers only, so one of them has at least half; the texts have far more."""
    rewards = {"parity": {"head": {"class_path": "test_collapse_guard.ByParity"}}}
    given = f"--model.rewards={json.dumps(rewards)}"
    run_with(tmp_path, "CollapseGuard", given, rollouts=1)
    assert min(column(tmp_path, "vote/top_answer")) >= 0.5
    assert max(column(tmp_path, "vote/distinct_answers")) == 2
    assert min(column(tmp_path, "guard/vote_alignment")) == pytest.approx(1)


KINDS = ("all", "label_free", "vote", "certainty")


@pytest.mark.parametrize(
    ("rewards", "weight", "judged"),
    [
        ({"gold": GoldAnswer(), "vote": WeightedReward(ClusterVote(), 0.0)}, 0.3, {"all"}),
        ({"vote": ClusterVote()}, 0.1, {"all", "label_free", "vote", "drive"}),
        ({"vote": ClusterVote()}, 0.3, {"all", "label_free", "vote"}),
        ({"sure": MeanLogprob()}, 0.3, {"all", "label_free", "certainty"}),
    ],
)
def test_which_detectors_judge_a_run(rewards, weight, judged):
    """By its rewards that have a weight, and whether a reference KL of 0.2 or more holds it."""
    objective = KLCov(reference_kl=ReferenceKL(weight))
    detectors = dict.fromkeys(CollapseGuard().detectors)
    detectors |= {kind: ALWAYS | {"runs": kind} for kind in KINDS}
    guard = CollapseGuard(detectors=detectors | {"drive": ALWAYS | {"space": "drive"}})
    trainer: Any = SimpleNamespace(callback_metrics={"rollout/length": torch.tensor(9.0)})
    scores = {
        name: RewardOutput(torch.zeros(2), answers=["1", "2"] if name == "vote" else None)
        for name in rewards
    }
    kinds = kinds_of_run(module(rewards=rewards, objective=objective), scores)
    values = {
        name: guard._value(trainer, name, detector, kinds)
        for name, detector in guard.detectors.items()
    }
    assert {name for name, value in values.items() if not math.isnan(value)} == judged


@pytest.mark.full  # which detectors judge a run: above
def test_a_detector_is_judged_in_its_kind_of_run_only(tmp_path):
    """A vote of weight 0 only measures; a detector of runs that reward a vote says nothing
    there.
    """
    rewards = {
        "gold": '{"gold": {"head": "GoldAnswer"}, "vote": {"head": "ClusterVote", "weight": 0}}',
        "vote": '{"vote": {"head": "ClusterVote"}, "certainty": {"head": "SelfCertainty", "weight":'
        " 0}}",
        "certainty": '{"certainty": {"head": "MeanLogprob"}}',
    }
    detectors = {name: None for name in CollapseGuard().detectors}
    detectors |= {
        kind: ALWAYS | {"runs": kind} for kind in ("all", "label_free", "vote", "certainty")
    }
    told = {}
    for name, heads in rewards.items():
        arguments = [*TINY, f"--model.rewards={heads}"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "CollapseGuard, rollout")
            run = run_with(
                tmp_path / name, "CollapseGuard", *arguments, baseline=1, detectors=detectors
            )
        events = [
            event["values"]
            for event in read_events(Path(run.trainer.log_dir))
            if event["kind"] == "alarm"
        ]
        told[name] = {values["detector"] for values in events}
    assert told["gold"] == {"all"}
    assert told["vote"] == {"all", "label_free", "vote"}
    assert told["certainty"] == {"all", "label_free", "certainty"}


@pytest.mark.full  # which detectors judge a run: above
@pytest.mark.parametrize(("weight", "told"), [(0.1, {"drive", "symptom"}), (0.3, {"symptom"})])
def test_what_drives_a_policy_is_not_judged_where_a_strong_reference_kl_holds_it(
    tmp_path, weight, told
):
    objective = json.dumps(
        {"class_path": "KLCov", "init_args": {"reference_kl": {"weight": weight}}}
    )
    detectors = {name: None for name in CollapseGuard().detectors}
    detectors |= {"drive": ALWAYS | {"space": "drive"}, "symptom": ALWAYS}
    _, events = guarded(
        tmp_path, "warn", f"--model.objective={objective}", rollouts=2, detectors=detectors
    )
    assert {event["values"]["detector"] for event in events} == told


def test_stop_ends_the_run(tmp_path):
    run, events = guarded(tmp_path, "stop", rollouts=4)
    assert int(run.model.num_rollouts) == 2
    assert [event["kind"] for event in events] == ["alarm", "stop"]
    end = read_events(Path(run.trainer.log_dir))[-1]
    assert (end["kind"], end["values"]["reason"], end["values"]["by"]) == (
        "end",
        "guard",
        "CollapseGuard",
    )


def test_adjust_scales_settings_once_and_keeps_the_schedule(tmp_path):
    cosine = ["--model.schedule.name=cosine", "--model.schedule.steps=16"]
    scale = {"learning_rate": 0.5, "objective.weight": 10.0, "rewards.certainty.weight": 0.2}
    run, events = guarded(tmp_path / "guard", "adjust", *cosine, *THREE, scale=scale)
    plain = [0.5e-4 * (1 + math.cos(math.pi * step / 16)) for step in (4, 8, 12)]
    rates = column(tmp_path / "guard", "policy/learning_rate")
    assert rates == pytest.approx([plain[0], plain[1], plain[2] / 2])
    assert run.model.objective.weight == pytest.approx(0.5)
    assert run.model.rewards.weights.tolist() == pytest.approx([0.5, 0.1])
    assert [event["kind"] for event in events] == [
        "alarm",
        "adjust",
    ]  # the alarm stays on: told and acted on once
    assert events[1]["values"] == scale
    with pytest.raises(ValueError, match="CollapseGuard changed settings in an earlier fit"):
        run.trainer.fit(run.model, run.datamodule)


@pytest.mark.slow
def test_rollback_restores_policy_and_optimizer_and_goes_on_with_new_samples(tmp_path):
    run, events = guarded(tmp_path, "rollback", rollouts=4)
    recorder = callback_of(run, Recorder)
    start, first, second, third, fourth = recorder.after
    assert_same(start, second)  # rollout 2 raised the alarm
    assert any(
        not torch.equal(value, third[name]) for name, value in start.items()
    )  # a new baseline
    assert_same(start, fourth)  # the next alarm, from the same snapshot
    assert any(not torch.equal(value, first[name]) for name, value in start.items())
    assert not run.trainer.optimizers[0].state_dict()["state"]  # as before the first step
    assert int(run.model.num_rollouts) == 4
    assert run.trainer.global_step == 16
    assert len(set(recorder.texts)) == 4
    assert column(tmp_path, "policy/learning_rate") == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5])
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2.5e-5)
    assert [event["kind"] for event in events] == ["alarm", "rollback"] * 2
    assert "as after rollout 0" in events[1]["message"]


def test_rollback_takes_the_older_of_the_last_two_snapshots(tmp_path):
    """Alarm in rollout 3, after a baseline of 2; snapshots of 0, 1 and 2 were taken, so 1 comes
    back.
    """
    run, events = guarded(tmp_path, "rollback", *THREE, baseline=2, snapshot_every=1)
    recorder = callback_of(run, Recorder)
    assert_same(recorder.after[1], recorder.after[3])
    moments = run.trainer.optimizers[0].state_dict()["state"][0]
    assert float(moments["step"]) == 4  # one rollout of four steps
    assert "as after rollout 1" in events[-1]["message"]
    assert sorted(path.name for path in Path(run.trainer.log_dir).rglob("guard/*")) == [
        "rollout=1.ckpt"
    ]


@pytest.mark.slow
def test_no_snapshot_is_taken_while_a_symptom_shows(tmp_path):
    slow = {**ALWAYS, "window": 9}  # beyond its limit from rollout 2 on, but not yet an alarm
    alone = dict.fromkeys(CollapseGuard().detectors) | {"mine": slow}
    run, events = guarded(tmp_path, "rollback", *THREE, snapshot_every=1, detectors=alone)
    assert not [event for event in events if event["values"].get("detector") == "mine"]
    taken = [rollout for rollout, _ in callback_of(run, CollapseGuard).snapshots.taken]
    assert taken == [0, 1]


@pytest.mark.slow
def test_after_the_last_rollback_the_next_alarm_stops_the_run(tmp_path):
    run, events = guarded(tmp_path, "rollback", rollouts=6, max_actions=1)
    assert [event["kind"] for event in events] == ["alarm", "rollback", "alarm", "stop"]
    assert int(run.model.num_rollouts) == 4  # 2, and after a new baseline


@pytest.mark.slow
def test_rollback_with_a_reference_model(tmp_path):
    reference = "--model.objective=" + json.dumps(
        {"class_path": "KLCov", "init_args": {"reference_kl": {"weight": 0.1}}}
    )
    run, _ = guarded(tmp_path, "rollback", reference, rollouts=2)
    assert_same(callback_of(run, Recorder).after[0], parameters(run))


# Every run logs into a new folder, so Lightning finds another folder of checkpoints than the one it
# resumes from.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_resuming_keeps_baselines_alarms_and_scaled_settings(tmp_path):
    scale = {"learning_rate": 0.5, "objective.weight": 10.0}
    whole, _ = guarded(tmp_path / "whole", "adjust", rollouts=4, scale=scale)
    first, _ = guarded(tmp_path / "first", "adjust", rollouts=2, scale=scale)
    first.trainer.save_checkpoint(tmp_path / "middle.ckpt")
    torch.load(tmp_path / "middle.ckpt", weights_only=True)
    second, events = guarded(
        tmp_path / "second",
        "adjust",
        f"--ckpt_path={tmp_path / 'middle.ckpt'}",
        rollouts=4,
        scale=scale,
    )
    assert not events  # the alarm is still the old one
    assert second.model.objective.weight == pytest.approx(0.5)
    assert column(tmp_path / "second", "policy/learning_rate") == pytest.approx([5e-5] * 2)
    assert (
        callback_of(second, CollapseGuard).watch.states
        == callback_of(whole, CollapseGuard).watch.states
    )
    assert_same(parameters(whole), parameters(second), tolerance=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scale": {"lr": 0.5}},
            "scale names 'lr'; settings that can be scaled: learning_rate, objective.entropy_bonus",
        ),
        ({"scale": {"rewards.vote.weight": 1.0}}, "changes nothing"),
        ({"scale": {"objective.entropy_bonus": 2.0}}, "changes nothing: the setting is 0"),
        ({"scale": {"objective.fraction": 10.0}}, "fraction=20"),  # .02 * 10 ** 3
        (
            {"detectors": {"mine": {**ALWAYS, "metric": "val/loss"}}},
            "'val/loss' is not logged by this run; logged: ",
        ),
        (
            {"detectors": {"mine": {**ALWAYS, "metric": "entropy/p10"}}},
            "a callback that logs it stands before CollapseGuard",
        ),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused(tmp_path, capsys, settings, message):
    with pytest.raises(SystemExit):
        guarded(tmp_path, "adjust", rollouts=1, **settings)
    assert message in capsys.readouterr().err


def test_a_scaled_objective_and_a_scheduler_exclude_each_other(tmp_path, capsys):
    other = "--trainer.callbacks+=" + json.dumps(
        {"class_path": "KLCovScheduler", "init_args": {"weight": {"start": 0.1}}}
    )
    with pytest.raises(SystemExit):
        guarded(tmp_path, "adjust", other, rollouts=1, scale={"objective.weight": 2.0})
    assert "KLCovScheduler sets the objective" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "pray"}, "action='pray' is unknown; use one of warn, stop, adjust, rollback"),
        ({"scale": {"learning_rate": 0.5}}, "has no effect with action=warn"),
        ({"action": "adjust", "scale": {}}, "at least one setting"),
        ({"action": "adjust", "scale": {"learning_rate": -1.0}}, "not negative"),
        ({"baseline": 0}, "baseline=0"),
        ({"snapshot_every": 0}, "snapshot_every=0"),
        ({"max_actions": 0}, "max_actions=0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        CollapseGuard(**settings)


def test_a_run_whose_gate_reads_gold_answers_is_not_label_free():
    scores = {"vote": RewardOutput(torch.zeros(2)), "gold": RewardOutput(torch.zeros(2))}
    gold = WeightedReward(GoldAnswer(), weight=0.0)
    for gate, is_free in ((None, True), (Gate("gold", at_least=0.5), False)):
        vote = WeightedReward(ClusterVote(), gate=gate)
        run = module(rewards={"vote": vote, "gold": gold})
        assert ("label_free" in kinds_of_run(run, scores)) == is_free


@pytest.mark.parametrize(("heads", "is_free"), [(["vote"], True), (["vote", "gold"], False)])
def test_a_run_whose_groups_are_chosen_by_gold_answers_is_not_label_free(heads, is_free):
    rewards = {"vote": WeightedReward(ClusterVote()), "gold": WeightedReward(GoldAnswer(), 0.0)}
    run = module(rewards=rewards, dynamic_sampling=DynamicSampling(heads))
    scores = dict.fromkeys(rewards, RewardOutput(torch.zeros(2)))
    assert ("label_free" in kinds_of_run(run, scores)) == is_free
