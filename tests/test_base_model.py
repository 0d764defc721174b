"""The embedded model: an ordinary small model folder that is right about half of the time, and how
it is made.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.model.loading import EMBEDDED_MODELS, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

FOLDER = EMBEDDED_MODELS["rlif-arithmetic"]
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def maker():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import make_base_model

        yield make_base_model
    del sys.modules["make_base_model"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_an_ordinary_folder_of_at_most_five_megabytes(tokenizer):
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 5e6
    assert [
        file.name for file in FOLDER.iterdir() if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")
    ] == []
    assert (FOLDER / "model.safetensors").exists()
    assert (FOLDER / "tokenizer.json").exists()
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "text", ["3+4=7;7+5=12####12", "12+0*99-7=", "100+1234=1334", "5", "01+007="]
)
def test_the_tokenizer_gives_back_what_it_reads(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_unknown_characters_do_not_fail(tokenizer):
    assert tokenizer.unk_token_id in tokenizer("seven").input_ids


def test_held_out_accuracy_is_about_a_half(tokenizer):
    policy, engine = PolicyModel(Policy("rlif-arithmetic")), NativeEngine()
    engine.setup(policy, seed=0)
    problems = ArithmeticProblems(3, 4, validation_size=64).load("validation")
    ids = [torch.tensor(tokenizer(question).input_ids) for question in problems["question"]]
    prompts = Prompts(ids, list(problems["question"]), {}, torch.arange(64))
    rollout = engine.generate(prompts, 4, Sampling(max_new_tokens=48), 0)
    extract = AnswerExtractor()
    right = [extract(rollout.texts[row]) == problems["answer"][row // 4] for row in range(256)]
    assert 0.40 <= sum(right) / 256 <= 0.65
    assert rollout.ended.float().mean() > 0.95
    assert sum("####" in text for text in rollout.texts) > 0.95 * 256


def test_solutions_end_in_the_answer_and_are_right_without_slips(maker):
    source = ArithmeticProblems(3, 4, size=200)
    gold = dict(zip(source.load("train")["question"], source.load("train")["answer"], strict=True))
    pairs = maker.make_examples(source, seed=0, careful=1.0)
    assert [question for question, _ in pairs] == list(source.load("train")["question"])
    assert all(solution.endswith(f"####{gold[question]}") for question, solution in pairs)
    assert (
        len({solution.partition("####")[0].count(";") for _, solution in pairs}) > 2
    )  # several styles


def test_a_worked_solution(maker):
    solutions = {
        name: maker.write_solution("3+4+5=", maker.Style(1.0, 0.0, style.work), random.Random(0))
        for name, style in maker.STYLES.items()
    }
    assert solutions["steps"] == "3+4=7;7+5=12####12"
    assert solutions["backwards"] == "5+4=9;9+3=12####12"
    assert solutions["copy"] == "3+4+5=12####12"
    assert solutions["direct"] == "####12"


def test_each_style_slips_at_its_own_rate(maker):
    rng = random.Random(1)
    for name, style in maker.STYLES.items():
        answers = [
            maker.write_solution("6+7+8=", style, rng).partition("####")[2] for _ in range(4000)
        ]
        chances = 2 if name in ("steps", "backwards") else 1
        expected = (1 - style.slip_rate) ** chances  # two slips rarely cancel out
        assert answers.count("21") / 4000 == pytest.approx(expected, abs=0.03), name


def test_careful_examples_come_first_and_the_rest_are_sloppy(maker):
    source = ArithmeticProblems(3, 4, size=2000)
    answers = source.load("train")["answer"]
    solutions = maker.make_examples(source, seed=3, careful=0.5)
    wrong = [
        s.partition("####")[2] != gold for (_, s), gold in zip(solutions, answers, strict=True)
    ]
    assert not any(wrong[:1000])
    assert 0.2 < sum(wrong[1000:]) / 1000 < 0.6
    assert solutions == maker.make_examples(source, seed=3, careful=0.5)


def test_a_slip_is_near_never_right_and_never_negative(maker):
    rng = random.Random(0)
    slips = {maker.slip(3, rng) for _ in range(2000)}
    assert slips == set(range(13)) - {3}


def test_held_out_problems_are_never_taught(maker):
    source = ArithmeticProblems(maker.MIN_TERMS, maker.MAX_TERMS, size=5000, validation_size=2000)
    taught = {question for question, _ in maker.make_examples(source, seed=0)}
    assert not taught & set(source.load("validation")["question"])
