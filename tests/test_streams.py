"""Streams of problems: each once a pass, the same on any number of ranks, an exact place."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from harness.command_line import refused
from harness.episodes import settings_of
from harness.runs import LONG, assert_same, fit, parameters
from rlif_lightning import LocalFiles, MixedProblems, PromptData, Streamed
from rlif_lightning.data.stream_loader import StreamLoader
from rlif_lightning.data.streams import stream_rows

NUMBER = 40  # rows


def problems(number: int = NUMBER) -> list[dict]:
    pairs = [divmod(i, 10) for i in range(number)]
    return [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


@pytest.fixture
def path(tmp_path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in problems()))
    return str(file)


def loader(source, prompts: int = 8, ranks: int = 1, rank: int = 0, **settings) -> StreamLoader:
    data = PromptData(source, "rlif-arithmetic", prompts_per_rollout=prompts, **settings)
    data._shard = lambda: (ranks, rank)
    data.setup("fit")
    return data.train_dataloader()


def batches(made: StreamLoader, number: int) -> list[list[int]]:
    found = []
    while len(found) < number:
        found += [batch.index.tolist() for batch in islice(made, number - len(found))]
    return found


def expected(buffer: int, prompts: int, seed: int, passes: int, number: int = NUMBER) -> list:
    """An independent restatement: shuffle each window, cut the pass into batches, drop the rest."""
    found = []
    for each in range(passes):
        order = []
        for window, start in enumerate(range(0, number, buffer)):
            rows = np.arange(start, min(start + buffer, number))
            counters = np.random.SeedSequence((seed, each, window), spawn_key=(8,))
            places = np.random.default_rng(counters).permutation(len(rows))
            order += rows[places].tolist()
        found += [order[i : i + prompts] for i in range(0, number - prompts + 1, prompts)]
    return found


@pytest.mark.parametrize(("buffer", "prompts"), [(16, 8), (10, 4), (13, 6), (100, 8)])
def test_the_order_is_that_of_shuffled_windows(path, buffer, prompts):
    made = loader(Streamed(LocalFiles(path), buffer), prompts, seed=3)
    wanted = expected(buffer, prompts, 3, passes=3)
    assert batches(made, len(wanted)) == wanted
    one_pass = [row for batch in wanted[: NUMBER // prompts] for row in batch]
    assert len(set(one_pass)) == len(one_pass) == NUMBER // prompts * prompts


def test_texts_and_columns_are_those_of_the_rows(path):
    batch = next(iter(loader(Streamed(LocalFiles(path), 10), 8)))
    rows = problems()
    assert batch.texts == [rows[i]["question"] for i in batch.index.tolist()]
    assert batch.column("answer") == [rows[i]["answer"] for i in batch.index.tolist()]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(path, ranks):
    parts = [batches(loader(Streamed(LocalFiles(path), 13), 6, ranks, r), 9) for r in range(ranks)]
    for number, whole in enumerate(expected(13, 6, 0, passes=2)[:9]):
        assert [parts[i % ranks][number][i // ranks] for i in range(6)] == whole


# At the start, in a window that others follow, before, at and behind the end of a pass.
ENOUGH = [(0, 2), (2, 0), (5, 2), (6, 0), (7, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawn", "ahead"),
    [
        pytest.param(drawn, ahead, marks=() if (drawn, ahead) in ENOUGH else pytest.mark.full)
        for drawn in (0, 1, 2, 5, 6, 7, 11)
        for ahead in (0, 2)
    ],
)
def test_a_resumed_loader_goes_on_with_the_very_next_batch(path, drawn, ahead):
    whole = batches(loader(Streamed(LocalFiles(path), 13), 6), 20)
    first = loader(Streamed(LocalFiles(path), 13), 6)
    batches(first, drawn)
    coming = [first.upcoming(1 + k).index.tolist() for k in range(ahead)]
    assert coming == whole[drawn : drawn + ahead]
    state = json.loads(json.dumps(first.state_dict()))
    again = loader(Streamed(LocalFiles(path), 13), 6)
    again.load_state_dict(state)
    assert batches(again, 20 - drawn) == whole[drawn:]


def test_problems_that_are_too_long_are_left_out_and_the_place_stays_exact(path):
    rows = problems()
    for row in rows[9::10]:
        row["question"] = "1+2+3+4+5="
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_prompt_tokens": 6, "overlong": "filter"}
    whole = batches(loader(Streamed(LocalFiles(path), 13), 4, **settings), 12)
    assert not {row for batch in whole for row in batch} & set(range(9, NUMBER, 10))
    first = loader(Streamed(LocalFiles(path), 13), 4, **settings)
    batches(first, 5)
    again = loader(Streamed(LocalFiles(path), 13), 4, **settings)
    again.load_state_dict(first.state_dict())
    assert batches(again, 7) == whole[5:]


def test_no_more_than_two_windows_are_read_ahead():
    read = []

    def rows():
        for row in problems():
            read.append(row)
            yield row

    made = loader(Streamed(IterableDataset.from_generator(rows), 8), 4)
    next(iter(made))
    assert len(read) < 3 * 8  # the window, and the same rows again for the comparison


def test_an_iterable_data_set_is_streamed_and_equals_the_file(path):
    given = Dataset.from_list(problems()).to_iterable_dataset()
    data = PromptData(given, "rlif-arithmetic")
    assert isinstance(data.source, Streamed)
    by_object = batches(loader(Streamed(given, 13), 6), 9)
    assert by_object == batches(loader(Streamed(LocalFiles(path), 13), 6), 9)
    assert list(stream_rows(LocalFiles(path), 38)) == problems()[38:]


STREAM = {"class_path": "Streamed", "init_args": {"buffer": 12}}


def arguments(file: str) -> list[str]:
    source = {"class_path": "LocalFiles", "init_args": {"train": file, "validation": file}}
    given = json.dumps({**STREAM, "init_args": {**STREAM["init_args"], "source": source}})
    return [f"--data.source={given}", "--data.prompts_per_rollout=8"]


def stream_fit(folder: Path, file: str, *given: str):
    without = [each for each in LONG if "limit_train" not in each]
    return fit(folder, *without, "--trainer.limit_train_batches=1.0", *arguments(file), *given)


@pytest.fixture(autouse=True)
def _no_generated_sizes(monkeypatch):
    import harness.runs

    kept = [each for each in harness.runs.BASE if "data.source.init_args" not in each]
    monkeypatch.setattr(harness.runs, "BASE", kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, path):
    whole = stream_fit(tmp_path / "whole", path, "--trainer.max_epochs=5")
    stream_fit(tmp_path / "parts", path, "--trainer.max_epochs=2")
    resumed = stream_fit(tmp_path / "parts", path, "--trainer.max_epochs=5", "--ckpt_path=auto")
    assert int(resumed.model.num_rollouts) == int(whole.model.num_rollouts) == 5
    assert_same(parameters(whole), parameters(resumed))


def test_what_cannot_be_exact_is_refused(path):
    shuffled = Dataset.from_list(problems()).to_iterable_dataset().shuffle(buffer_size=9)
    with pytest.raises(ValueError, match="is shuffled or divided"):
        Streamed(shuffled)
    with pytest.raises(ValueError, match="is shuffled or divided"):
        Streamed(split_dataset_by_node(Dataset.from_list(problems()).to_iterable_dataset(), 0, 2))
    rows = iter(problems())
    once = IterableDataset.from_generator(lambda: rows)
    with pytest.raises(ValueError, match="gives other rows when it is read again"):
        loader(Streamed(once, 12))
    made = loader(Streamed(LocalFiles(path), 12))
    batches(made, 2)
    state = made.state_dict()
    changes = [({"buffer": 10}, "buffer=12"), ({"prompts_per_rollout": 4}, "prompts_per")]
    for change, word in changes:
        with pytest.raises(ValueError, match=f"{word}.*cannot be found again"):
            loader(Streamed(LocalFiles(path), 12)).load_state_dict({**state, **change})
    changed = Path(path).read_text().splitlines()
    changed[13] = json.dumps({"question": "9+9=", "answer": "18"})
    Path(path).write_text("\n".join(changed) + "\n")
    with pytest.raises(ValueError, match="rows from 12 on are not those"):
        loader(Streamed(LocalFiles(path), 12)).load_state_dict(state)


def test_sources_that_cannot_be_streamed_are_named(tmp_path, path):
    with pytest.raises(ValueError, match="source=MixedProblems cannot be streamed"):
        Streamed(MixedProblems({"a": LocalFiles(path)}))
    with pytest.raises(ValueError, match="buffer=0"):
        Streamed(LocalFiles(path), 0)
    (tmp_path / "a.csv").write_text("question,answer\n1+1=,2\n")
    with pytest.raises(ValueError, match="only JSON lines"):
        loader(Streamed(LocalFiles(str(tmp_path / "a.csv"))))
    with pytest.raises(ValueError, match="not inside of another source"):
        MixedProblems({"a": Streamed(LocalFiles(path))}).load("train")
    (tmp_path / "b.jsonl").write_text('{"question": "1+1="}\n[1]\n')
    with pytest.raises(ValueError, match=r"line 2: .* is no JSON object"):
        loader(Streamed(LocalFiles(str(tmp_path / "b.jsonl"))))
    (tmp_path / "c.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="the stream has no rows"):
        loader(Streamed(LocalFiles(str(tmp_path / "c.jsonl"))))


def test_further_draws_are_refused(tmp_path, path, capsys):
    drawing = '--model.dynamic_sampling={"max_draws": 2, "heads": ["vote"]}'
    import harness.runs

    told = refused(capsys, "fit", *harness.runs.BASE, *arguments(path), drawing)
    assert "model.dynamic_sampling.max_draws=2 draws problems from any place" in told


def test_a_batch_of_two_windows_keeps_its_environment(path):
    """Without it, this batch alone would be of single turns: data ranks would wait for ever."""
    made = loader(Streamed(LocalFiles(path), buffer=12), environment=settings_of())
    found = [next(iter(made)) for _ in range(2)]
    assert {row // 12 for row in found[1].index.tolist()} == {0, 1}
    assert all(batch.environment is not None for batch in found)
