"""A sequence classifier as a reward: its own forward, one text at a time, whatever is batched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from harness.models import classifier_folder
from harness.rollouts import handmade
from rlif_lightning import RewardModel
from rlif_lightning.records import Rollout
from rlif_lightning.rewards import RewardSet
from rlif_lightning.rewards.classifier import batches
from rlif_lightning.rewards.given import as_rewards

TEXTS = ["1+2=3####3", "7", "3+4=7;7+5=12####12", "5+5=10####10", "2####2", "", "9", "8+1=9####9"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }};{% endfor %}"


def rollout_of(texts: list[str] = TEXTS) -> Rollout:
    """Completions of problems that the tokenizer can read."""
    made = handmade(texts, 2)
    problems = [f"{p}+{p}=" for p in range(len(texts) // 2)]
    return replace(made, prompts=replace(made.prompts, texts=problems))


def alone(folder: str, texts: list[str], dtype: torch.dtype = torch.float32) -> list[float]:
    """The model's own logit of each text by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]


def whole_texts(rollout: Rollout) -> list[str]:
    return [f"{rollout.prompts.texts[b // 2]}{text}" for b, text in enumerate(rollout.texts)]


@pytest.mark.parametrize("pad_token_id", [0, None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_each_text_alone(pad_token_id, dtype):
    folder = classifier_folder(pad_token_id=pad_token_id)
    rewards, rollout = RewardSet(as_rewards({"rm": RewardModel(folder, dtype)})), rollout_of()
    with torch.autocast("cpu", torch.bfloat16):  # as trainer.precision=bf16-mixed has it
        scores = rewards(rollout)["rm"].scores
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == len(TEXTS)
    exact = alone(folder, whole_texts(rollout), getattr(torch, dtype))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert scores.tolist() == pytest.approx(exact, abs=tolerance)


@pytest.mark.parametrize("chat", [False, True])
def test_a_special_token_that_a_completion_spells_out_is_no_token(chat):
    """A spelled </s> would close the completion's turn, and <pad> move the token that is read."""
    head, rollout = RewardModel(classifier_folder()), rollout_of(["7</s>", "7<pad>"])
    tokenizer = head._model()[1]
    tokenizer.chat_template = TEMPLATE
    if chat:
        chats = [[{"role": "user", "content": "0+0="}]]
        rollout = replace(rollout, prompts=replace(rollout.prompts, messages=chats))
    for ids in head._token_ids(tokenizer, rollout):
        assert not {*ids} & {*tokenizer.convert_tokens_to_ids(["</s>", "<pad>"])}


def test_it_is_no_part_of_the_module():
    head = RewardModel(classifier_folder())
    head.check(_Problems(), 2)  # type: ignore[arg-type]
    rewards = RewardSet(as_rewards({"rm": head}))
    assert not list(rewards.parameters())
    assert set(rewards.state_dict()) == {"spreads"}


class _Problems:
    """A split without conversations."""

    messages: Any = None


def test_conversations_go_through_its_own_template(tmp_path):
    folder = classifier_folder()
    chats = [[{"role": "user", "content": f"{p}+{p}="}] for p in range(len(TEXTS) // 2)]
    rollout = rollout_of()
    rollout = replace(rollout, prompts=replace(rollout.prompts, messages=chats))
    head = RewardModel(folder)
    with pytest.raises(
        ValueError, match="tokenizer has no chat template, and the prompts are conv"
    ):
        head(rollout)
    head._model()[1].chat_template = TEMPLATE
    texts = [f"{b // 2}+{b // 2}=;{text};" for b, text in enumerate(TEXTS)]
    assert head(rollout).scores.tolist() == pytest.approx(alone(folder, texts), abs=1e-5)


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 2 labels; a reward model has one"):
        RewardModel(classifier_folder(labels=2))._model()
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        RewardModel("x", "int8")
    with pytest.raises(ValueError, match="tokenizer='no/such/model'"):
        RewardModel("no/such/model")._model()
    with pytest.raises(ValueError, match=r"its files have no tensor 'score\.weight'"):
        RewardModel("rlif_lightning/assets/base_model")._model()


def test_batches_hold_the_budget_and_every_row():
    lengths = [3, 9, 3, 4, 20, 5, 5]
    for pads in (True, False):
        found = list(batches(lengths, pads, 16))
        assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
        for batch in found:
            longest = max(lengths[row] for row in batch)
            assert len(batch) == 1 or longest * len(batch) <= 16
            assert pads or len({lengths[row] for row in batch}) == 1
    assert len(list(batches(lengths, True, 1000))) == 1
