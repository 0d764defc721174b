"""The embedded base model: what is shipped, and the script that made it."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlif_lightning.policy import resolve_model
from rlif_lightning.prompts import ArithmeticProblems

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "rlif_lightning" / "assets" / "base_model"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_base_model", ROOT / "scripts" / "make_base_model.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def problems(script, **settings) -> ArithmeticProblems:
    return ArithmeticProblems(script.MIN_TERMS, script.MAX_TERMS, **settings)


def value(expression: str) -> int:
    return sum(int(term) for term in expression.split("+"))


def results(solution: str) -> list[tuple[str, str]]:
    """The (sum, result) pairs of the worked part: "3+4=7;7+5=12####12" -> [("3+4", "7"), ("7+5", "12")]."""
    work = solution.split("####")[0]
    return [tuple(line.split("=")) for line in work.split(";")] if work else []


def test_the_folder_is_small_and_holds_no_pickles():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert Path(resolve_model("rlif-arithmetic")) == FOLDER


def test_shipped_tokenizer_and_architecture_are_those_of_the_script(script, tokenizer, model):
    assert tokenizer.get_vocab() == script.build_tokenizer().get_vocab()
    fresh = script.build_model(tokenizer)
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len({*special, tokenizer.unk_token_id}) == 4
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == special


def test_tokenizer_round_trip(script, tokenizer):
    rng = random.Random(0)
    texts = ["1234+56-7*8=", "0+00+007=;105####-3 "]
    for question in problems(script, size=50).load("train")["question"]:
        texts += [question + script.write_solution(question, style, rng) for style in script.STYLES.values()]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_one_token_per_number_and_none_added(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("3+14=17####17").input_ids)
    assert tokens == ["3", "+", "14", "=", "17", "####", "17"]


def test_careful_pupils_are_right_in_every_style(script):
    found = {
        name: script.write_solution("3+4+5=", script.Style(1.0, 0.0, style.work), random.Random(0))
        for name, style in script.STYLES.items()
    }
    assert found == {
        "steps": "3+4=7;7+5=12####12",
        "backwards": "5+4=9;9+3=12####12",
        "copy": "3+4+5=12####12",
        "direct": "####12",
    }


def test_every_style_states_the_answer_it_worked_out(script):
    rng = random.Random(1)
    for question in problems(script, size=200).load("train")["question"]:
        for style in script.STYLES.values():
            solution = script.write_solution(question, style, rng)
            assert re.fullmatch(r"([0-9+=;]+)?####[0-9]+", solution)
            if work := results(solution):
                assert work[-1][1] == solution.split("####")[1]


@pytest.mark.parametrize("name", ["steps", "backwards", "copy", "direct"])
def test_slips_happen_at_the_stated_rate(script, name):
    rng, style = random.Random(2), script.STYLES[name]
    wrong = []
    for question in problems(script, size=2000).load("train")["question"]:
        solution = script.write_solution(question, style, rng)
        work = results(solution) or [(question[:-1], solution.removeprefix("####"))]
        wrong += [value(left) != int(right) for left, right in work]
    spread = (style.slip_rate * (1 - style.slip_rate) / len(wrong)) ** 0.5
    assert abs(sum(wrong) / len(wrong) - style.slip_rate) < 4 * spread


def test_slips_are_wrong_near_and_many(script):
    rng = random.Random(3)
    for number in (0, 4, 20):
        expected = set(range(max(0, number - script.LARGEST_SLIP), number + script.LARGEST_SLIP + 1)) - {number}
        assert {script.slip(number, rng) for _ in range(1000)} == expected


def test_examples_follow_the_shares_are_careful_first_and_never_held_out(script):
    source = problems(script, size=3000, validation_size=500)
    examples = script.make_examples(source, seed=0)
    right = [solution.split("####")[1] == str(value(question[:-1])) for question, solution in examples]
    num_careful = round(script.CAREFUL * len(examples))
    assert all(right[:num_careful])
    assert 0.4 < sum(right[num_careful:]) / len(right[num_careful:]) < 0.8
    direct = sum(solution.startswith("####") for _, solution in examples) / len(examples)
    assert direct == pytest.approx(script.STYLES["direct"].share, abs=0.04)
    assert sum(style.share for style in script.STYLES.values()) == pytest.approx(1)
    assert not {question for question, _ in examples} & set(source.load("validation")["question"])
    assert examples == script.make_examples(source, seed=0) != script.make_examples(source, seed=1)


def test_batches_teach_the_solution_and_the_end_but_not_the_question(script, tokenizer):
    examples = [("3+4+5=", "####12"), ("1+2+3+4=", "1+2=3;3+3=6;6+4=10####10"), ("9+9+9=", "####27")]
    (ids, labels), (last, _) = script.make_batches(examples, tokenizer, batch_size=2)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "3+4+5=####12"
    taught = labels[0][labels[0] >= 0]
    assert tokenizer.decode(taught) == "####12</s>"
    assert (labels[0] < 0).sum() == ids.shape[1] - len(taught)
    assert ids.shape == labels.shape and last.shape == (1, 9)


def test_training_lowers_the_loss(script, tokenizer):
    torch.manual_seed(0)
    examples = script.make_examples(problems(script, size=640), seed=0)
    fresh = script.build_model(tokenizer)
    ids, labels = next(script.make_batches(examples, tokenizer, 64))
    before = fresh(input_ids=ids, labels=labels).loss.item()
    script.train(fresh, tokenizer, examples, batch_size=64, learning_rate=4e-3)
    assert not fresh.training
    assert fresh(input_ids=ids, labels=labels).loss.item() < before - 1


def test_shipped_model_is_right_sometimes_and_its_majority_often(script, tokenizer, model):
    torch.manual_seed(0)
    found = script.evaluate(model, tokenizer, problems(script, validation_size=64), num_samples=8)
    assert 0.40 < found["sampled accuracy"] < 0.65
    assert found["majority-of-8 accuracy"] > 0.75
    assert found["parseable"] > 0.97
