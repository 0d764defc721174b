"""A column that a head names and the data set has not: the message lists those it has."""

from __future__ import annotations

import pytest
from datasets import Dataset

from harness.python_runs import NAME, data
from rlif_lightning import (
    CheckerReward,
    GradedAnswer,
    JudgeHead,
    JudgeScorer,
    LocalFiles,
    PairwiseJudgeHead,
    RewardFunction,
    Rubric,
    RuleJudge,
    Streamed,
    TargetLogprob,
    WeightedReward,
)
from rlif_lightning.rewards.criteria import Contains, WeightedCriterion
from rlif_lightning.rewards.evidence import EvidenceColumn
from rlif_lightning.rewards.reward_set import RewardSet

RULE = RuleJudge(lambda request: "Score: 3")


def by_level(completions: list[str], level: list[int]) -> list[float]:
    return [0.0 for _ in completions]


HEADS = {
    "target": TargetLogprob("level"),
    "pairwise": PairwiseJudgeHead(RULE, "level"),
    "template": PairwiseJudgeHead(RULE, "answer", "{reply_a} {reply_b} {level}"),
    "judge": JudgeHead(RULE, "{completion} {level}"),
    "function": RewardFunction(by_level),
    "criterion": Rubric({"a": WeightedCriterion(Contains("level"))}, weighting="static"),
    "evidence": CheckerReward(
        GradedAnswer(), JudgeScorer(RULE), evidence=EvidenceColumn("level.text")
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_columns_of_the_data_set_are_listed(name):
    source = data()
    source.setup("fit")
    split = source.split("train")
    assert split is not None
    said = r"level.* is not in the train split; its columns are \['answer', 'question'\]"
    with pytest.raises(ValueError, match=said):
        RewardSet({name: WeightedReward(HEADS[name])}).check(split, 2)


def test_a_column_that_a_head_misspells_is_told_beside_those_that_there_are():
    source = data()
    source.setup("fit")
    split = source.split("train")
    assert split is not None
    with pytest.raises(
        ValueError, match=r"'levl' is not in the data set \(it has \['answer', 'que"
    ):
        split.batch([0]).only(["levl"]).column("levl")


def test_a_window_smaller_than_a_rollout_names_the_buffer(tmp_path):
    path = tmp_path / "sums.jsonl"
    Dataset.from_list([{"question": f"1+{n}", "answer": n} for n in range(20)]).to_json(str(path))
    stream = Streamed(LocalFiles(str(path)), buffer=5)
    source = data(source=stream, prompts_per_rollout=8, tokenizer=NAME)
    said = r"first window of data\.source\.buffer=5 rows has only 5 prompts; lower it, or raise"
    with pytest.raises(ValueError, match=said):
        source.setup("fit")
