"""Sources of problems: splits that share nothing, answers that are right, and errors that say what
to do.
"""

from __future__ import annotations

import json
import re
import sys

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.data.sources import (
    ArithmeticProblems,
    HubDataset,
    LocalFiles,
    ProblemSource,
    ReasoningGym,
)

ROWS = [{"question": "1+1=", "answer": "2"}, {"question": "2+2=", "answer": "4"}]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(["+", "-", "+-", "*", "+-*"]),
    st.integers(),
)
def test_arithmetic_answers_are_right_and_within_the_settings(
    min_terms, more, digits, operators, seed
):
    source = ArithmeticProblems(
        min_terms, min_terms + more, digits, operators, size=30, validation_size=5, seed=seed
    )
    for row in source.load("train"):
        expression = row["question"].removesuffix("=")
        assert str(eval(expression)) == row["answer"]
        terms = re.findall(r"\d+", expression)
        assert min_terms <= len(terms) <= min_terms + more
        assert all(int(term) < 10**digits and str(int(term)) == term for term in terms)
        assert set(expression) - set("0123456789") <= set(operators)


def test_arithmetic_splits_are_disjoint_and_repeatable():
    source = ArithmeticProblems(size=3000, validation_size=1000, min_terms=2, max_terms=3)
    train, validation = source.load("train"), source.load("validation")
    assert (len(train), len(validation)) == (3000, 1000)
    assert not set(train["question"]) & set(validation["question"])
    assert source.load("train")["question"] == train["question"]


def test_arithmetic_problem_depends_on_its_row_alone():
    few, many = (ArithmeticProblems(size=size).load("train")["question"] for size in (10, 50))
    assert list(few) == list(many)[:10]
    assert list(ArithmeticProblems(size=10, seed=1).load("train")["question"]) != list(few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_terms": 0}, "min_terms=0"),
        ({"min_terms": 4, "max_terms": 3}, "min_terms=4, max_terms=3"),
        ({"digits": 0}, "digits=0"),
        ({"operators": "/"}, "operators='/'"),
        ({"operators": ""}, "operators=''"),
        ({"size": 0}, "size=0"),
        ({"validation_size": 0}, "validation_size=0"),
    ],
)
def test_arithmetic_refuses(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ArithmeticProblems(**arguments)


def write(path, rows=ROWS):
    """A file of each format, made without our code."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text(
            "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows)
        )
    else:
        Dataset.from_list(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_local_files_of_every_format(tmp_path, suffix):
    data = LocalFiles(validation=write(tmp_path / f"problems{suffix}")).load("validation")
    assert list(data["question"]) == ["1+1=", "2+2="]
    assert [str(answer) for answer in data["answer"]] == ["2", "4"]


def test_several_local_files_are_joined_in_the_order_given(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [{"question": name}]) for name in "ba"]
    assert list(LocalFiles(paths).load("train")["question"]) == ["b", "a"]


def test_a_changed_local_file_is_read_again(tmp_path):
    path = tmp_path / "problems.jsonl"
    LocalFiles(write(path)).load("train")
    assert list(LocalFiles(write(path, [{"question": "new"}])).load("train")["question"]) == ["new"]


def test_local_files_refuse(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    known = write(tmp_path / "problems.jsonl")
    for train, message in [
        (None, "train=None: no file is given for the train split"),
        ([], "no file is given"),
        (str(tmp_path / "missing.jsonl"), "missing.jsonl': no such file"),
        (str(tmp_path / "problems.txt"), "unknown suffix '.txt'; known are"),
        (str(tmp_path / "empty.jsonl"), "empty.jsonl': the file is empty"),
        ([known, write(tmp_path / "problems.csv")], "several formats"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            LocalFiles(train, validation=known).load("train")


def test_hub_dataset_opens_a_local_folder(tmp_path):
    write(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", [{"question": "9+9="}])
    source = HubDataset(str(tmp_path))
    assert len(source.load("train")) == 2
    assert list(source.load("validation")["question"]) == ["9+9="]
    assert len(HubDataset(str(tmp_path), train_split="train[:1]").load("train")) == 1


def test_hub_dataset_names_what_is_missing(tmp_path):
    write(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"validation_split='dev' cannot be loaded: .*dev"):
        HubDataset(str(tmp_path), validation_split="dev").load("validation")
    with pytest.raises(ValueError, match=r"name='.*nowhere'.*cannot be loaded"):
        HubDataset(str(tmp_path / "nowhere")).load("train")


def sums(**arguments) -> ReasoningGym:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    return ReasoningGym("chain_sum", size=600, validation_size=100, config=config, **arguments)


def test_reasoning_gym_splits_are_disjoint_alike_and_repeatable():
    pytest.importorskip("reasoning_gym")
    train, validation = sums().load("train"), sums().load("validation")
    assert (len(train), len(validation)) == (600, 100)
    assert not set(train["question"]) & set(validation["question"])
    assert sums().load("train")["question"] == train["question"]
    assert sums(seed=1).load("train")["question"] != train["question"]
    for split in (train, validation):
        one_digit = sum(
            re.search(r"\d\d", question) is None for question in split["question"]
        ) / len(split)
        assert 0.35 < one_digit < 0.65  # both splits mix one- and two-digit problems half and half


def test_reasoning_gym_answers_are_right():
    pytest.importorskip("reasoning_gym")
    for row in sums().load("validation"):
        assert str(eval(re.search(r"\d+ [+-] \d+", row["question"])[0])) == row["answer"]


def test_reasoning_gym_refuses():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="size=0"):
        ReasoningGym("chain_sum", size=0)
    with pytest.raises(ValueError, match="task='no_such_task'"):
        ReasoningGym("no_such_task").load("train")
    with pytest.raises(ValueError, match="terms_at_least"):
        ReasoningGym("chain_sum", config={"terms_at_least": 2}).load("train")
    with pytest.raises(ValueError, match="min_terms must be positive"):
        ReasoningGym("chain_sum", config={"min_terms": 0}).load("train")


def test_reasoning_gym_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "reasoning_gym", None
    )  # makes the import fail, as if it were not installed
    with pytest.raises(ValueError, match=re.escape('pip install "rlif-lightning[reasoning]"')):
        ReasoningGym("chain_sum").load("train")


def test_problem_source_must_say_how_to_load():
    with pytest.raises(TypeError, match="load"):
        ProblemSource()
