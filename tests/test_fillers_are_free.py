"""A data rank without a further group of dynamic sampling takes part, and asks no judge."""

from __future__ import annotations

import math

import torch

from harness.forked import on_two_ranks
from harness.python_runs import NAME, data
from harness.rollouts import handmade
from rlif_lightning import DynamicSampling, JudgeHead, Policy, RuleJudge, Sampling, WeightedReward
from rlif_lightning.judges.asking import asking_nothing
from rlif_lightning.judges.base import Reply, Request
from rlif_lightning.learning.dynamic_sampling import DynamicDraws
from rlif_lightning.learning.scored_rollouts import RolloutSource
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rewards.judged import AskingHead
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rollout.native import NativeEngine


def three(request: Request) -> str:
    return "Score: 3"


class Counts(RuleJudge):
    """Counts questions; its calls fail, where it is told so."""

    answers_elsewhere = True
    repeats_itself = False  # equal questions are counted

    def __init__(self, failed: int = 0):
        super().__init__(three, max_failed=0.5)
        self.asked, self.failed = 0, failed

    def ask(self, requests) -> list[Reply]:
        self.asked += len(requests)
        bad = [Reply(None, "no")] * self.failed
        return [*bad, *super().ask(requests[self.failed :])]


def scored(head: AskingHead, idle: bool) -> tuple[list[float], dict[str, float]]:
    rollout = handmade(["1", "2"], 2)
    with asking_nothing(idle):
        head.start(rollout)
        assert head.waits != idle
        output = head(rollout)
    return output.scores.tolist(), dict(output.log)


def test_nothing_is_asked():
    judge = Counts()
    scores, log = scored(JudgeHead(judge), True)
    assert all(map(math.isnan, scores))
    assert judge.asked == log["judge/questions"] == log["judge/failed"] == 0
    scores, log = scored(JudgeHead(judge), False)
    assert scores == [0.5, 0.5]
    assert judge.asked == log["judge/questions"] == 2


def test_failures_are_shares_of_what_was_asked(tmp_path):
    """One of two real questions fails, which is allowed; on the other rank nothing is asked."""

    def work(rank: int):
        return scored(JudgeHead(Counts(failed=1)), rank == 1)

    (scores, log), (others, log_of_other) = on_two_ranks(work, tmp_path)
    assert math.isnan(scores[0])
    assert scores[1] == 0.5
    assert all(map(math.isnan, others))
    for each in (log, log_of_other):
        assert each["judge/questions"] == 2
        assert each["judge/failed"] == 0.5
    assert torch.tensor(scores).isnan().tolist() == [True, False]


def test_a_draw_without_a_group_asks_nothing():
    problems = data()
    problems.setup("fit")
    split = problems.split("train")
    assert split is not None
    judge, engine = Counts(), NativeEngine()
    engine.setup(PolicyModel(Policy(NAME)), 0)
    rewards = RewardSet({"judge": WeightedReward(JudgeHead(judge, "{completion}"))})
    source = RolloutSource(engine, rewards, Sampling(max_new_tokens=2), 2)
    draws = DynamicDraws(DynamicSampling(max_draws=2), source, split, 0)
    prompts = split.batch([0])
    draws._draw_again([], prompts, 0)
    assert judge.asked == 0
    draws._draw_again([3], prompts, 0)
    assert judge.asked == 2
