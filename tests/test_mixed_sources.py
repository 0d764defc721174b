"""Mixtures with exact shares, a curriculum that resumes exactly, what ``save_to_disk`` wrote, and
the tools of a chat.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from harness.command_line import base
from harness.runs import ONE, fit
from rlif_lightning import cli
from rlif_lightning.data.columns import column_values
from rlif_lightning.data.curriculum import LearnableFirst
from rlif_lightning.data.given_problems import as_source
from rlif_lightning.data.loaders import EncodedSplit, TrainLoader
from rlif_lightning.data.mixed_sources import EasyFirst, MixedProblems, shares
from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer, tools_of
from rlif_lightning.data.sources import ArithmeticProblems, HubDataset, ProblemSource
from rlif_lightning.data.training_problems import TrainingProblems


class Rows(ProblemSource):
    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def load(self, split):
        return Dataset.from_list(self.rows)


def named(name: str, size: int, **more) -> Rows:
    return Rows([{"question": f"{name}{k}", "answer": str(k), **more} for k in range(size)])


def test_a_mixture_has_its_shares_and_every_problem():
    mixed = MixedProblems({"a": named("a", 4), "b": named("b", 10)}, {"a": 3.0, "b": 2.0})
    dataset = mixed.load("train")
    assert Counter(dataset["source"]) == {"a": 15, "b": 10}  # 10 / 2 = 5 a unit, times 3 and 2
    times = Counter(dataset["question"])
    assert len(times) == 14
    assert {times[f"b{k}"] for k in range(10)} == {1}
    assert sorted(times[f"a{k}"] for k in range(4)) == [3, 4, 4, 4]
    assert mixed.load("train")["question"] == dataset["question"]


def test_validation_and_a_mixture_without_weights_have_every_problem_once():
    sources = {"a": named("a", 4), "b": named("b", 10, level=1)}
    for dataset in (
        MixedProblems(sources, {"a": 3.0, "b": 2.0}).load("validation"),
        MixedProblems(sources).load("train"),
    ):
        assert Counter(dataset["source"]) == {"a": 4, "b": 10}
        assert len(set(dataset["question"])) == 14
        assert [row["level"] for row in dataset if row["source"] == "a"] == [None] * 4
        assert [row["level"] for row in dataset if row["source"] == "b"] == [1] * 10


def test_the_first_validation_problems_are_of_every_source():
    """They are what ``data.validation_prompts`` measures."""
    sources = {"a": named("a", 40), "b": named("b", 10), "c": named("c", 1)}
    dataset = MixedProblems(sources).load("validation")
    assert sorted(dataset["question"]) == sorted(
        row["question"] for each in sources.values() for row in each.load("validation")
    )
    for first, counts in ((5, {"a": 4, "b": 1}), (26, {"a": 20, "b": 5, "c": 1})):
        assert Counter(dataset["source"][:first]) == counts
    of_a = [row["question"] for row in dataset if row["source"] == "a"]
    assert of_a == [f"a{k}" for k in range(40)]


def test_a_source_of_sources_has_the_validation_problems_that_they_have():
    train, both = as_source([{"question": "1+1=", "n": 1}]), named("a", 1)
    assert not EasyFirst(train, "n").has("validation")
    assert not MixedProblems({"a": train, "b": train}).has("validation")
    assert MixedProblems({"a": both, "b": both}).has("validation")
    assert TrainingProblems(train).has("validation")


def test_a_mixture_validates_on_the_sources_that_can(caplog):
    """One source without validation problems took the figures of all away."""
    mixed = MixedProblems({"a": named("a", 3), "b": as_source([{"question": "1+1="}])})
    assert mixed.has("validation")
    assert mixed.has("train")
    with caplog.at_level("INFO"):
        assert mixed.load("validation")["question"] == ["a0", "a1", "a2"]
    assert "measures ['a'] alone: ['b'] have no validation problems" in caplog.text


def test_a_mixture_refuses_an_order_that_it_would_not_keep():
    with pytest.raises(ValueError, match=r"'a' is EasyFirst, whose order .* put EasyFirst around"):
        MixedProblems({"a": EasyFirst(named("a", 2, n=1), "n")})


def test_shares_by_hand():
    assert shares({"a": 4, "b": 10}, {"a": 3.0, "b": 2.0}) == {"a": 15, "b": 10}
    assert shares({"a": 7}, {"a": 0.1}) == {"a": 7}
    assert shares({"a": 1, "b": 1000}, {"a": 1.0, "b": 1000.0}) == {"a": 1, "b": 1000}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedProblems({}), "give at least one"),
        (lambda: MixedProblems({"a": named("a", 1)}, {"b": 1.0}), "one positive number for each"),
        (lambda: MixedProblems({"a": named("a", 1)}, {"a": 0.0}), "one positive number for each"),
        (lambda: MixedProblems({"a": named("a", 1, source="x")}).load("train"), "rename it"),
        (
            lambda: MixedProblems(
                {"a": named("a", 1, level=1), "b": named("b", 1, level={"x": 1})}
            ).load("train"),
            "make a column one type in all of them",
        ),
        (lambda: EasyFirst(named("a", 2), "hard").load("train"), "its columns are"),
        (lambda: EasyFirst(named("a", 2, hard="x"), "hard").load("train"), "row 0 of the train"),
        (lambda: EasyFirst(named("a", 2), "hard", -1.0), "jitter=-1.0 must be"),
        (
            lambda: EasyFirst(LearnableFirst(named("a", 2), "vote"), "n"),
            "source=LearnableFirst has an order of its own",
        ),
    ],
)
def test_what_cannot_be_mixed_or_ordered_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


HARD = [3.0, 1.0, 2.0, 2.0, 0.0, 9.0]


def loader(source: ProblemSource) -> TrainLoader:
    dataset = source.load("train")
    rows = np.array([0, 1, 2, 3, 5])  # row 4 was left out as too long
    encoded = [np.array([row]) for row in rows]
    split = EncodedSplit(dataset, rows, encoded, lambda row: row["question"], lambda texts: [])
    return TrainLoader(split, 1, 7, 1, 0, curriculum=source.order)


def by_difficulty(jitter: float) -> EasyFirst:
    rows = [{"question": str(k), "meta": {"hard": hard}} for k, hard in enumerate(HARD)]
    return EasyFirst(Rows(rows), "meta.hard", jitter)


def drawn(loader: TrainLoader) -> list[int]:
    return [int(batch.index) for batch in loader]


def test_without_jitter_an_epoch_goes_from_easy_to_hard_and_ties_change_places():
    epochs = loader(by_difficulty(0.0))
    orders = [drawn(epochs) for _ in range(20)]
    assert {tuple(order) for order in orders} == {(1, 2, 3, 0, 5), (1, 3, 2, 0, 5)}


def test_jitter_moves_problems_and_leaves_none_out():
    epochs = loader(by_difficulty(1.0))
    orders = [drawn(epochs) for _ in range(50)]
    assert all(sorted(order) == [0, 1, 2, 3, 5] for order in orders)
    places = np.mean([[order.index(row) for row in (1, 2, 0, 5)] for order in orders], axis=0)
    assert list(places) == sorted(places)
    assert len({tuple(order) for order in orders}) > 10


def test_a_curriculum_goes_on_at_its_exact_place():
    whole = loader(by_difficulty(0.5))
    rest = [drawn(whole) for _ in range(3)][2]
    part = loader(by_difficulty(0.5))
    part.load_state_dict({**whole.state_dict(), "batches_drawn": 10})
    assert drawn(part) == rest


def test_an_order_that_is_no_permutation_is_refused():
    class Twice(Rows):
        def order(self, rows, seed, epoch):
            return np.zeros(len(rows), dtype=int)

    with pytest.raises(ValueError, match=r"no permutation of 0\.\.4"):
        drawn(loader(Twice([{"question": str(k)} for k in range(6)])))


@pytest.mark.slow
def test_a_mixture_in_an_order_trains_from_the_command_line(tmp_path):
    half = {"class_path": "ArithmeticProblems", "init_args": {"size": 8, "validation_size": 4}}
    path = tmp_path / "hard.jsonl"
    path.write_text("".join(f'{{"question": "{k}+1=", "answer": "{k + 1}"}}\n' for k in range(8)))
    files = {"class_path": "LocalFiles", "init_args": {"train": str(path), "validation": str(path)}}
    mixed = {"sources": {"sums": half, "mine": files}, "weights": {"sums": 1, "mine": 2}}
    given = json.dumps({"class_path": "MixedProblems", "init_args": mixed})
    arguments = [*base("source.init_args"), f"--trainer.default_root_dir={tmp_path}"]
    run = cli.main(["fit", *arguments, *ONE, f"--data.source={given}"])
    train = run.datamodule.split("train").dataset
    assert Counter(train["source"]) == {"sums": 8, "mine": 16}
    assert run.trainer.global_step == 4


@pytest.fixture(scope="module")
def problems() -> Dataset:
    return ArithmeticProblems(size=10, validation_size=4).load("train")


def test_a_saved_data_set_has_slices_of_one_split(tmp_path, problems):
    problems.save_to_disk(tmp_path / "one")
    source = HubDataset(
        str(tmp_path / "one"), train_split="train[:70%]", validation_split="train[70%:]"
    )
    assert source.load("train")["question"] == problems["question"][:7]
    assert source.load("validation")["question"] == problems["question"][7:]
    alone = HubDataset(str(tmp_path / "one"))
    assert len(alone.load("train")) == 10
    with pytest.raises(ValueError, match=r"Unknown split .test.*train\[90%:\].*batches=0"):
        alone.load("validation")


def test_saved_splits_are_opened_by_name(tmp_path, problems):
    splits = DatasetDict(
        {"train": problems.select(range(6)), "test": problems.select(range(6, 10))}
    )
    splits.save_to_disk(tmp_path / "two")
    source = HubDataset(str(tmp_path / "two"))
    assert source.load("train")["question"] == problems["question"][:6]
    assert source.load("validation")["question"] == problems["question"][6:]


@pytest.mark.full  # slices, and splits by name: above
def test_a_saved_data_set_trains(tmp_path, problems):
    problems.save_to_disk(tmp_path / "one")
    saved = {
        "class_path": "HubDataset",
        "init_args": {"name": str(tmp_path / "one"), "validation_split": "train[:2]"},
    }
    run = cli.main(
        [
            "fit",
            *base("source.init_args"),
            *ONE,
            f"--trainer.default_root_dir={tmp_path}",
            f"--data.source={json.dumps(saved)}",
        ]
    )
    assert len(run.datamodule.split("train")) == 10
    assert len(run.datamodule.split("validation")) == 2


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": "text"}}}


class Chat:
    """The part of a tokenizer that renders a chat; it shows what it was given."""

    def apply_chat_template(self, messages, tools, add_generation_prompt, tokenize):
        return f"{json.dumps(tools)}|{messages[-1]['content']}"


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])])
def test_tools_reach_the_chat_template(tools):
    renderer = PromptRenderer("question", PromptFormat(), Chat())  # pyright: ignore
    row = {"question": "Rain?", "tools": tools}
    assert renderer.render(row) == f"{json.dumps([WEATHER])}|Rain?"
    for none in (None, "", []):
        assert renderer.render({**row, "tools": none}) == "null|Rain?"
    assert renderer.render({"question": "Rain?"}) == "null|Rain?"


def test_a_table_s_empty_keys_are_no_part_of_a_tool():
    other = {"type": "function", "function": {"name": "time", "parameters": {"zone": "text"}}}
    table = Dataset.from_list([{"tools": [WEATHER]}, {"tools": [other]}])
    read = [tools_of({"tools": value}) for _, value in column_values(table, "tools", [0, 1])]
    assert read == [[WEATHER], [other]]


@pytest.mark.parametrize("tools", ["{", "hammer", [1], {"name": "weather"}])
def test_what_is_no_list_of_tools_is_refused_with_its_row(tools):
    renderer = PromptRenderer("question", PromptFormat(), Chat())  # pyright: ignore
    with pytest.raises(ValueError, match=r"row 3 of the train split is .* not a list of JSON"):
        renderer.check_problem({"question": "Rain?", "tools": tools}, "row 3 of the train split")


@pytest.mark.slow
def test_the_order_of_a_run_without_a_curriculum_is_the_one_before(tmp_path):
    run = fit(tmp_path, *ONE)
    split = run.datamodule.split("train")
    plain = TrainLoader(split, 8, run.datamodule.seed, 1, 0)
    now = run.datamodule.train_dataloader()
    now.batches_drawn = 0
    assert [b.index.tolist() for b in now] == [b.index.tolist() for b in plain]
