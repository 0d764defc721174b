"""Texts beyond a model's context: refused in setup where data says so, else without a score."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from harness.architectures import load, save_tiny, tiny_config
from harness.models import classifier_folder
from harness.python_runs import NAME, data, module
from harness.rollouts import handmade
from rlif_lightning import Policy, PromptData, RewardModel, RLIFTrainer, Rubric, TargetLogprob
from rlif_lightning.judges.base import RunModels
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rewards.criteria import Scored, WeightedCriterion

QUIET: dict[str, Any] = {
    "max_steps": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> str:
    """The folder of a model that reads at most 24 tokens."""
    config = tiny_config("gpt2", max_position_embeddings=24)
    return save_tiny(config, tmp_path_factory.mktemp("narrow"))


def problems(prompts: list[str], replies: list[str], tokenizer: str = NAME) -> PromptData:
    rows = Dataset.from_dict({"question": prompts, "reply": replies})
    given = {"prompt_column": "question", "answer_column": None, "tokenizer": tokenizer}
    return data(source=rows, **given)


def run(folder: Path, source: Any, policy: str, preflight: bool, **settings: Any) -> None:
    trainer = RLIFTrainer(default_root_dir=folder, **QUIET)
    made = module(policy=Policy(policy), **settings)
    trainer.preflight(made, source, 2) if preflight else trainer.fit(made, datamodule=source)


@pytest.mark.parametrize("preflight", [False, True])
def test_a_prompt_beyond_the_context_is_refused_before_anything_is_sampled(
    tmp_path, narrow, preflight
):
    """Prompts of 3 and 22 tokens, and 4 new ones: 26 tokens, of which the last is no input."""
    source = problems(["1+2"] * 5 + ["1" * 44], ["3"] * 6, narrow)
    said = (
        r"row 5 of the train split: .* has 24 positions .* 22 tokens .*max_new_tokens=4 .* 26 tok"
    )
    with pytest.raises(ValueError, match=said):
        run(tmp_path, source, narrow, preflight)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("preflight", [False, True])
def test_a_reply_beyond_the_context_is_refused_before_anything_is_sampled(
    tmp_path, narrow, held, preflight
):
    head = TargetLogprob("reply")
    held_by = Rubric({"r": WeightedCriterion(Scored(head, low=-1.0))}, weighting="static")
    source = problems(["1+2"] * 5 + ["1+3"], ["3"] * 5 + ["4" * 44], narrow)
    said = (
        r"row 5 of the train split: the reply of TargetLogprob.column='reply' has 2\d tokens: .*24"
    )
    with pytest.raises(ValueError, match=said):
        run(tmp_path, source, narrow, preflight, rewards={"r": held_by if held else head})


def target_rewards(folder: str, replies: list[str]) -> torch.Tensor:
    policy = load(folder)
    head = TargetLogprob("reply")
    head.bind(RunModels(policy, policy.settings, lambda _: policy, torch.device("cpu"), 0))
    return head(handmade(["a 1[HUMAN]: 1", "none"] * 2, 2, reply=replies)).scores


def test_a_reply_that_cannot_be_read_has_no_score(narrow):
    with pytest.warns(UserWarning, match="TargetLogprob gives no score .*has 24 positions"):
        scores = target_rewards(narrow, ["7+8", "7" * 60])
    assert scores[:2].tolist() == pytest.approx(target_rewards(narrow, ["7+8", "7"])[:2].tolist())
    assert math.isnan(scores[2])
    assert scores[3] == -8.0  # a completion without a marker is not read


def test_a_rollout_without_any_reply_is_scored(narrow):
    policy = load(narrow)
    head = TargetLogprob("reply")
    head.bind(RunModels(policy, policy.settings, lambda _: policy, torch.device("cpu"), 0))
    assert head(handmade(["1", "2"], 2, reply=["7"])).scores.tolist() == [-8.0, -8.0]


def rollout_of(texts: list[str], prompt: str) -> Rollout:
    rollout = handmade(texts, 2)
    ids = [torch.tensor([1])] * rollout.num_prompts
    prompts = Prompts(ids, [prompt] * rollout.num_prompts, {}, torch.arange(rollout.num_prompts))
    return replace(rollout, prompts=prompts)


def test_what_a_reward_model_cannot_read_has_no_score():
    head = RewardModel(classifier_folder())  # 64 positions
    with pytest.warns(UserWarning, match=r"RewardModel gives no score .* at most 64; lower samp"):
        scores = head(rollout_of(["1+2=3", "1+" * 100], "1+2=")).scores
    alone = head(rollout_of(["1+2=3", "1+2=3"], "1+2=")).scores
    assert scores[0] == pytest.approx(float(alone[0]), abs=1e-6)
    assert math.isnan(scores[1])


def test_a_prompt_that_a_reward_model_cannot_read_is_refused(tmp_path):
    source = problems(["1+2"] * 5 + ["1+" * 40], ["3"] * 6)
    with pytest.raises(ValueError, match=r"row 5 of the train split has 8\d tokens .* at most 64"):
        run(tmp_path, source, NAME, False, rewards={"r": RewardModel(classifier_folder())})
