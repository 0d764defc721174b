"""Whether a run used labels is derived from what could have shown them to the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from callbacks import CollapseGuard
from harness.rollouts import handmade
from rlif_lightning import (
    CheckerReward,
    ClusterVote,
    DistIL,
    DynamicSampling,
    GoldAnswer,
    JudgeHead,
    JudgeScorer,
    MeanLogprob,
    RLIFModule,
    RubricJudgeHead,
    RuleJudge,
    WeightedReward,
)
from rlif_lightning.evaluation.label_checks import label_uses
from rlif_lightning.learning.teacher import Teacher
from rlif_lightning.rewards.gate import Gate

RULE = RuleJudge(lambda request: "Score: 3")


def module(rewards, **settings) -> RLIFModule:
    return RLIFModule("rlif-arithmetic", rewards, group_size=4, **settings)


def gold(weight: float = 1.0, **settings) -> WeightedReward:
    return WeightedReward(GoldAnswer(), weight=weight, **settings)


def test_a_run_on_votes_alone_used_none():
    assert label_uses(module({"vote": ClusterVote(), "certainty": MeanLogprob()})) == []


def test_a_gold_head_that_is_measured_only_is_no_use():
    assert label_uses(module({"vote": ClusterVote(), "gold": gold(0.0)})) == []


def test_a_held_judge_that_drops_completions_is_a_use_at_weight_0():
    judge = RubricJudgeHead(RULE)  # drops what cannot be read
    holder = CheckerReward(judge, JudgeScorer(RULE))
    [line] = label_uses(module({"vote": ClusterVote(), "held": WeightedReward(holder, weight=0.0)}))
    assert "may drop completions" in line


def test_each_way_is_found_by_its_own_line():
    by_head = module({"vote": ClusterVote(), "gold": gold(0.5)})
    assert label_uses(by_head) == ["reward `gold` (GoldAnswer, weight 0.5) reads gold answers"]
    gated = WeightedReward(ClusterVote(), gate=Gate("gold", at_least=0.5))
    by_gate = module({"vote": gated, "gold": gold(0.0)})
    assert label_uses(by_gate) == ["the gate of reward `vote` reads `gold` (GoldAnswer)"]
    drawn = DynamicSampling(heads=["gold"])
    by_draw = module({"vote": ClusterVote(), "gold": gold(0.0)}, dynamic_sampling=drawn)
    assert label_uses(by_draw) == ["dynamic sampling keeps groups by `gold` (GoldAnswer)"]
    assert label_uses(module({"vote": ClusterVote()}, dynamic_sampling=DynamicSampling())) == []


def test_a_teacher_that_is_shown_gold_answers_is_a_use():
    teacher = Teacher(feedback="answer", needs_gold=True)
    run = module({"vote": ClusterVote()}, objective=DistIL(teacher=teacher))
    assert label_uses(run) == ["the teacher's feedback shows gold answers"]


@pytest.mark.parametrize(
    ("monitor", "is_label"),
    [
        ("val/accuracy", True),
        ("val_low/maj@8", True),
        ("val/greedy_accuracy", True),
        ("reward/gold/mean", True),
        ("reward/vote/mean", False),
        ("val/entropy", False),
        ("val/agreement", False),
        (None, False),
    ],
)
def test_a_policy_that_was_chosen_by_a_labelled_figure(monitor, is_label):
    run = module({"vote": ClusterVote(), "gold": gold(0.0)})
    told = [f"this policy was chosen by `{monitor}`, which needs gold answers"] if is_label else []
    assert label_uses(run, monitor) == told
    stopping = [EarlyStopping(monitor)] if monitor else []
    told = [f"EarlyStopping ends the run by `{monitor}`, which needs gold answers"] * is_label
    assert label_uses(run, None, stopping) == told


def test_a_figure_that_a_head_of_gold_answers_logs_is_a_labelled_one():
    """Such as code/solved: a head of weight 0 measures it, and the policy is chosen by it."""

    class Solved(GoldAnswer):
        def forward(self, rollout):
            return replace(super().forward(rollout), log={"mine/solved": 0.5})

    run = module({"vote": ClusterVote(), "solved": WeightedReward(Solved(), weight=0.0)})
    made = handmade(["1", "2"], 2)
    run.rewards(replace(made, prompts=replace(made.prompts, columns={"answer": ["1"]})))
    assert label_uses(run, "vote/unanimous") == []
    [line] = label_uses(run, "mine/solved")
    assert line == "this policy was chosen by `mine/solved`, which needs gold answers"


@pytest.mark.parametrize(
    ("action", "metric", "is_use"),
    [
        ("adjust", "reward/gold/mean", True),
        ("stop", "reward/gold/mean", True),
        ("warn", "reward/gold/mean", False),
        ("adjust", "reward/vote/mean", False),
    ],
)
def test_a_guard_that_acts_by_a_labelled_figure(action, metric, is_use):
    run = module({"vote": ClusterVote(), "gold": gold(0.0)})
    detector = {"metric": metric, "side": "below", "factor": 0.5}
    guard = CollapseGuard(action=action, detectors={"mine": detector})
    told = [f"CollapseGuard acts by `{metric}`, which needs gold answers"] * is_use
    assert label_uses(run, callbacks=[guard]) == told


def test_a_judge_is_a_use_by_what_its_template_shows():
    shows = "{prompt} {solution} {completion} {form}"
    plain, showing = JudgeHead(RULE), JudgeHead(RULE, template=shows)
    assert label_uses(module({"judge": plain})) == []
    told = "reward `judge` (JudgeHead) is shown the column `solution`, which by its name holds gold"
    assert label_uses(module({"judge": showing})) == [f"{told} answers"]
    rubric = {"vote": ClusterVote(), "rubric": WeightedReward(RubricJudgeHead(RULE), weight=0.0)}
    told = "reward `rubric` (RubricJudgeHead, weight 0) reads gold answers and may drop completions"
    assert label_uses(module(rubric)) == [told]


def test_a_weight_that_a_callback_changed_counts():
    run = module({"vote": ClusterVote(), "gold": gold(0.0)})
    run.rewards.set_weight("gold", 2.0)
    assert label_uses(run) == ["reward `gold` (GoldAnswer, weight 2) reads gold answers"]
