"""Heads that other heads hold are found, measured, charged and ended as those at the top are."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.checker import always_neutral
from callbacks import CheckerMonitor
from callbacks.guard import certainty_part, kinds_of_run
from harness.episodes import ACTING
from harness.files import ROOT
from harness.python_runs import module
from harness.rollouts import handmade
from harness.runs import FOUR, adding, column, fit
from rlif_lightning import (
    CheckerReward,
    ClusterVote,
    DynamicSampling,
    EnvironmentReward,
    EvidenceColumn,
    Gate,
    GoldAnswer,
    GradedAnswer,
    JudgeHead,
    JudgeScorer,
    MeanLogprob,
    Rubric,
    RubricJudgeHead,
    RuleJudge,
    WeightedReward,
)
from rlif_lightning.evaluation.label_checks import label_uses
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead
from rlif_lightning.rewards.criteria import Matches, Scored, WeightedCriterion
from rlif_lightning.rewards.held_head import heads_in
from rlif_lightning.rewards.reward_set import RewardSet

RULE = RuleJudge(lambda request: "Score: 3")


def checked(head: RewardHead) -> CheckerReward:
    return CheckerReward(head, JudgeScorer(RULE))


def rubric(*heads: RewardHead, weight: float = 1.0) -> Rubric:
    """One criterion for each head, and one by a pattern with the weight 3."""
    criteria = {
        f"held{number}": WeightedCriterion(Scored(head), weight)
        for number, head in enumerate(heads)
    }
    return Rubric(criteria | {"equal": WeightedCriterion(Matches("="), 3.0)}, weighting="static")


def test_every_head_is_found():
    certainty, vote = MeanLogprob(), ClusterVote()
    inner = checked(certainty)
    outer = rubric(inner, vote)
    assert list(heads_in(outer)) == [outer, inner, certainty, vote]


def test_the_kind_of_a_run_is_that_of_its_held_heads():
    for held in (checked(MeanLogprob()), rubric(MeanLogprob())):
        found = kinds_of_run(module(rewards={"r": held}), {"r": RewardOutput(torch.zeros(2))})
        assert found == {"all", "label_free", "certainty"}
    found = kinds_of_run(
        module(rewards={"r": rubric(ClusterVote())}), {"r": RewardOutput(torch.zeros(2))}
    )
    assert found == {"all", "label_free", "vote"}


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (MeanLogprob(), 1.0),
        (ClusterVote(), 0.0),
        (checked(MeanLogprob()), 1.0),
        (rubric(MeanLogprob()), 0.25),  # 1 of 1 + 3
        (rubric(checked(MeanLogprob()), ClusterVote(), weight=-1.0), 0.2),  # 1 of 1 + 1 + 3
    ],
)
def test_how_far_a_reward_is_certainty(head, part):
    assert certainty_part(head) == part


def test_what_an_environment_pays_is_no_label_free_reward_wherever_it_is_held():
    for held in (checked(EnvironmentReward()), rubric(EnvironmentReward())):
        [line] = label_uses(module(rewards={"r": held}))
        assert "is an environment's, which sees every column" in line
    zero = WeightedReward(EnvironmentReward(), weight=0.0)
    vote = WeightedReward(ClusterVote(), gate=Gate("game", at_least=0.5))
    [line] = label_uses(module(rewards={"vote": vote, "game": zero}))
    assert line == "the gate of reward `vote` reads `game` (EnvironmentReward)"
    [line] = label_uses(
        module(
            rewards={"vote": ClusterVote(), "game": zero},
            dynamic_sampling=DynamicSampling(heads=["game"]),
        )
    )
    assert line == "dynamic sampling keeps groups by `game` (EnvironmentReward)"


def test_a_rubric_takes_no_completion_out_whatever_its_judge_does():
    held = WeightedReward(rubric(RubricJudgeHead(RULE)), weight=0.0)
    assert label_uses(module(rewards={"vote": ClusterVote(), "r": held})) == []


def test_a_held_head_that_tells_all_completions_apart_cannot_decide():
    run = module(rewards={"r": checked(MeanLogprob())}, dynamic_sampling=DynamicSampling())
    with pytest.raises(ValueError, match="tells completions of practically every group apart"):
        DynamicSampling().check(run.rewards, 4, None)
    run = module(rewards={"r": rubric(MeanLogprob())}, dynamic_sampling=DynamicSampling())
    DynamicSampling().check(run.rewards, 4, None)  # its verdicts are 0 or 1


def test_a_rubric_passes_on_what_its_heads_log_and_show():
    head = rubric(JudgeHead(RULE), JudgeHead(RuleJudge(lambda request: "Score: 5")))
    output = head(handmade(["1+2=3", "no"], 2))
    assert output.log["judge/questions"] == 4  # two judges
    assert output.log["criterion/held0"] == 0  # 3 of 5 is below 1
    assert output.columns["judge_calls"] == [2, 2]
    assert output.columns["judge_reply"] == ["Score: 3", "Score: 3"]
    assert output.columns["held1_judge_reply"] == ["Score: 5", "Score: 5"]
    output = rubric(MeanLogprob())(handmade(["1+2=3", "no"], 2))
    assert not output.columns
    assert not [name for name in output.log if name.startswith("judge")]


class Waits(RewardHead):
    """Has begun something elsewhere, and remembers that it was ended."""

    began = ended = False

    def start(self, rollout: Rollout) -> None:
        self.began = True

    @property
    def waits(self) -> bool:
        return self.began

    def abandon(self) -> None:
        self.ended = True

    def forward(self, rollout: Rollout) -> RewardOutput:
        assert Fails.asked, "what waits scores after all others"
        raise AssertionError("another head has failed")


class Fails(RewardHead):
    asked = False

    def forward(self, rollout: Rollout) -> RewardOutput:
        Fails.asked = True
        raise ValueError("no score")


def test_a_rubrics_head_waits_and_is_abandoned():
    waits = Waits()
    rewards = {"r": WeightedReward(rubric(waits)), "f": WeightedReward(Fails())}
    with pytest.raises(RuntimeError, match="reward head 'f'"):
        RewardSet(rewards)(handmade(["1", "2"], 2))
    assert waits.ended


RULES = {"class_path": "RuleJudge", "init_args": {"rule": "benchmarks.checker.always_neutral"}}
CHECKER = {
    "class_path": "CheckerReward",
    "init_args": {
        "head": {"class_path": "GradedAnswer", "init_args": {"extractor": {"kind": "hash"}}},
        "scorer": {"class_path": "JudgeScorer", "init_args": {"judge": RULES}},
        "evidence": {"class_path": "EvidenceColumn", "init_args": {"column": "question"}},
    },
}


def criteria_of(head: dict) -> str:
    criterion = {"class_path": "Scored", "init_args": {"head": head}}
    criteria = {"held": {"criterion": criterion}}
    arguments = {"criteria": criteria, "weighting": "static"}
    rewards = {
        "rubric": {"head": {"class_path": "Rubric", "init_args": arguments}},
        "gold": {"head": "GoldAnswer", "weight": 0.0},
    }
    return "--model.rewards=" + json.dumps(rewards)


@pytest.mark.full  # what a held checker logs, and that it is found: below
@pytest.mark.filterwarnings("ignore:CheckerMonitor, rollout:UserWarning")
def test_a_checker_in_a_rubric_is_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    watch = adding("CheckerMonitor", baseline=1)
    fit(tmp_path, *FOUR, "--trainer.limit_val_batches=0", criteria_of(CHECKER), watch)
    assert column(tmp_path, "checker/neutral") == [1.0] * 4
    assert column(tmp_path, "checker/alarms")[-1] == 1


def test_a_run_without_a_checker_is_refused():
    nobody: Any = None  # the trainer, which is not asked
    run = module(rewards={"r": rubric(GoldAnswer())})
    with pytest.raises(ValueError, match="watches a CheckerReward, and this run has none"):
        CheckerMonitor().setup(nobody, run, "fit")
    CheckerMonitor().setup(nobody, module(rewards={"r": rubric(checked(GoldAnswer()))}), "fit")


def test_a_rubric_passes_on_what_a_checker_logs():
    scorer = JudgeScorer(RuleJudge(always_neutral))
    held = CheckerReward(GradedAnswer(), scorer, evidence=EvidenceColumn("answer"))
    output = rubric(held)(handmade(["1+2=3", "no"], 2, answer=["3"]))
    assert output.log["checker/neutral"] == 1


@pytest.mark.slow
def test_a_held_head_that_would_misread_an_episode_is_refused(tmp_path, capsys):
    likely = {"class_path": "TargetLogprob", "init_args": {"column": "answer"}}
    with pytest.raises(SystemExit):
        fit(tmp_path, *ACTING, criteria_of(likely))
    said = capsys.readouterr().err
    assert "rewards.rubric: TargetLogprob reads a completion as one text" in said
