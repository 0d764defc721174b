"""The second family: its word problems, and its model from training to a run."""

from __future__ import annotations

import collections
import csv
import itertools
import json
import random
import re
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import study_inputs
from benchmarks.study_report import words_table
from harness.command_line import ON_CPU
from harness.files import ROOT
from harness.runs import column
from rlif_lightning import cli
from rlif_lightning.answers.extraction import AnswerExtractor

NAMES = ("make_word_model", "make_base_model", "word_problems", "word_tokenizers")


@pytest.fixture(scope="module")
def maker():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import make_word_model

        yield make_word_model
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def words(maker):
    return sys.modules["word_problems"]


def drawn(words, split="train", level="both", number=300):
    return list(itertools.islice(words.problems(split, level, random.Random(3)), number))


def test_a_problem_and_its_solutions_by_hand(words):
    problem = words.WordProblem("?", ((4, "*", 5, 20), (20, "+", 3, 23)), "dollars")
    told = {words.solution(problem, random.Random(seed)) for seed in range(30)}
    assert told == {
        "We compute 4 * 5 = 20, then 20 + 3 = 23. The answer is 23 dollars. #### 23",
        "4 * 5 = 20; 20 + 3 = 23 #### 23",
        "#### 23",
    }
    assert {AnswerExtractor()(text) for text in told} == {"23"}


def test_every_template_asks_for_what_its_signs_compute(words):
    """With the numbers 12, 4 and 2 in each question: its answer as a reader works it out."""
    one = [12 + 4, 12 - 4, 12 * 4, 12 + 4, 12 - 4, 12 / 4, 16, 8, 48, 16, 8, 48]
    two = [48 + 2, 12 - 6, 16 / 2, 8 + 2, 16 - 2, 48 + 2, 12 + 4 + 2, 48 + 2]
    templates = [*words.ONE, *words.TWO]
    for (signs, text, _), answer in zip(templates, [*one, *two], strict=True):
        value = 12
        for sign, number in zip(signs, (4, 2), strict=False):
            value = words.apply(sign, value, number)
        assert value == answer, text
        assert ("{d}" in text) == (len(signs) == 2)


def test_problems_are_right_and_numbers_small(words):
    for problem in drawn(words):
        assert not re.search("[{}]", problem.question + problem.unit)
        last = None
        for a, sign, b, result in problem.steps:
            assert eval(f"{a} {sign} {b}") == result
            assert 1 <= result <= 99
            assert last in (None, a)
            last = result
            assert re.search(rf"\b{b}\b", problem.question)
        assert re.search(rf"\b{problem.steps[0][0]}\b", problem.question)
        assert problem.answer == last
    counts = collections.Counter(len(each.steps) for each in drawn(words))
    assert min(counts[1], counts[2]) > 100
    for level, steps in (("one", 1), ("two", 2)):
        assert {len(each.steps) for each in drawn(words, level=level, number=50)} == {steps}


def test_splits_share_no_problem_and_draws_repeat(words):
    train, validation = ([p.question for p in drawn(words, s)] for s in ("train", "validation"))
    assert not {*train} & {*validation}
    assert len({*train}) == len(train)
    assert train == [problem.question for problem in drawn(words)]


def test_pieces_are_bytes_pairs_and_words(maker):
    """What was read comes back, of other letters as well; common words are one piece."""
    texts = [" ".join(pair) for pair in maker.examples(2000, 1)]
    tokenizer = maker.build_tokenizer(texts, 700)
    assert len(tokenizer) == 700
    assert tokenizer.get_vocab() == maker.build_tokenizer(texts, 700).get_vocab()
    for text in (texts[0], "Żółw has 9 no\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(" dollars").input_ids) == 1


def test_checkpoints_are_the_nearest_rounds(maker):
    accuracies = [0.02, 0.11, 0.09, 0.25, 0.5, 0.55, 0.72]
    assert maker.nearest(accuracies, maker.TARGETS) == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]  # rising places, all different
    assert maker.nearest(accuracies, [0.1, 0.52]) == [1, 4]
    assert maker.nearest([0.0, 0.2, 0.25, 0.6], [0.1, 0.22, 0.7]) == [0, 1, 3]


def test_an_input_is_made_once(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'made')!r}, 'a').write('x')")
    monkeypatch.setitem(study_inputs.COMMANDS, "some", lambda folder: [str(script)])
    for _ in range(2):
        study_inputs.make("some", tmp_path / "runs")
    assert (tmp_path / "made").read_text() == "x"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setitem(study_inputs.COMMANDS, "other", lambda folder: [str(script)])
    with pytest.raises(RuntimeError, match=r"other: exit code 3, see .*other\.log"):
        study_inputs.make("other", tmp_path / "runs")
    assert not (tmp_path / "runs" / "other.made").exists()


def test_how_good_the_checkpoints_are_goes_into_the_results(tmp_path):
    (tmp_path / "words").mkdir()
    table = "checkpoint,round,level,sampled,low,high,majority@8\n3,7,two,0.218,0.182,0.254,0.305\n"
    (tmp_path / "words" / "checkpoints.csv").write_text(table)
    study_inputs.record_checkpoints(tmp_path / "words", tmp_path)
    row = {"round": "7", "sampled": "21.8 (18.2 to 25.4)", "majority@8": "30.5"}
    assert words_table(tmp_path) == {"3 two": row}
    assert words_table(tmp_path / "none") == {}


@pytest.mark.full  # problems, pieces and rounds: above
def test_it_is_made_goes_on_and_trains(maker, tmp_path, monkeypatch):
    """Two rounds at once are one and one after a stop; a checkpoint and its problems are a run."""
    monkeypatch.setattr(maker, "VALIDATION", 4)
    monkeypatch.setattr(maker, "TRAIN", 16)
    monkeypatch.setattr(maker, "TARGETS", (0.1, 0.7))
    monkeypatch.setattr(maker.base, "MAX_NEW_TOKENS", 8)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = maker.train(whole, 128, 2)
    maker.train(stopped, 128, 1)
    again = maker.train(stopped, 128, 2)
    states = [AutoModelForCausalLM.from_pretrained(each[-1]).state_dict() for each in (done, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    size = sum(value.numel() for value in states[0].values())
    assert 2 * size <= 5e6
    maker.write_problems(tmp_path / "problems")
    maker.publish(tmp_path, done)
    with (tmp_path / "checkpoints.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["checkpoint"], line["level"]) for line in lines][:3] == [
        ("1", "one"),
        ("1", "two"),
        ("1", "both"),
    ]
    shutil.rmtree(whole)
    row = json.loads((tmp_path / "problems" / "one_validation.jsonl").read_text().splitlines()[0])
    assert row["question"].endswith("?\n")
    assert row["answer"].isdigit()
    monkeypatch.chdir(ROOT)
    files = {s: str(tmp_path / "problems" / f"both_{s}.jsonl") for s in ("train", "validation")}
    run = cli.main(
        [
            "fit",
            *(f"--config=configs/study/{name}.yaml" for name in ("base", "paper", "words")),
            *ON_CPU,
            f"--model.policy.name={tmp_path}/checkpoint_2",
            *(f"--data.source.init_args.{split}={path}" for split, path in files.items()),
            f"--trainer.default_root_dir={tmp_path}/run",
            "--trainer.max_steps=4",
            "--trainer.val_check_interval=1",
        ]
    )
    assert run.trainer.global_step == 4
    assert all(0 <= value <= 1 for value in column(tmp_path / "run", "val/accuracy"))
    (score,) = column(tmp_path / "run", "reward/certainty/mean")
    assert score > 0
