"""predict: a data set that load_dataset reads, gone on with after an interruption at any byte,
without duplicates.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from harness.command_line import base, evaluate, refused
from harness.episodes import ACTING
from harness.forked import run_module
from harness.processes import environment
from rlif_lightning import RewardHead, RewardOutput, Rollout, cli
from rlif_lightning.evaluation import prediction_files

BATCHES = [
    "--data.validation_prompts_per_batch=3"
]  # three batches: 3, 3 and 2 prompts of 4 completions


def predict(folder: Path, *arguments: str) -> cli.RLIFCLI:
    return evaluate(
        "predict", folder.parent, *BATCHES, f"--predictions.folder={folder}", *arguments
    )


def jsonl(folder: Path) -> Path:
    return folder / "completions-00000.jsonl"


def assert_same(text: str, whole: str) -> None:
    """Equal but for rounding: what is left to do falls into other batches."""
    found, expected = ([json.loads(line) for line in lines.splitlines()] for lines in (text, whole))
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        scores, wanted = left.pop("scores"), right.pop("scores")
        assert scores == pytest.approx(wanted, abs=1e-5)
        assert left == pytest.approx(right, abs=1e-5)


def read_back(folder: Path, cache: Path) -> Dataset:
    return load_dataset(str(folder), split="train", cache_dir=str(cache))


@pytest.fixture(scope="module")
def two_batches(tmp_path_factory) -> Path:
    """The folder of a predict that ended after two batches, which tests copy."""
    folder = tmp_path_factory.mktemp("two_batches") / "data"
    predict(folder, "--trainer.limit_predict_batches=2")
    return folder


@pytest.fixture
def begun(two_batches, tmp_path) -> Path:
    """A folder that a predict began, to go on with."""
    return Path(shutil.copytree(two_batches, tmp_path / "data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """What an uninterrupted predict writes."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    predict(folder)
    return jsonl(folder).read_text()


@pytest.mark.slow
def test_a_record_per_completion(whole):
    records = [json.loads(line) for line in whole.splitlines()]
    assert [(record["index"], record["completion_number"]) for record in records] == [
        (p, g) for p in range(8) for g in range(4)
    ]
    assert all(set(record["scores"]) == {"vote", "certainty"} for record in records)
    assert all(
        record["scores"]["certainty"] == pytest.approx(record["mean_logprob"]) for record in records
    )
    assert all(
        0 <= record["scores"]["vote"] <= 1 and 1 <= record["length"] <= 48 for record in records
    )


@pytest.mark.full  # test_run.py has a second run in a folder
def test_without_a_folder_each_run_has_its_own(tmp_path, whole):
    for version in range(2):
        evaluate("predict", tmp_path, *BATCHES)
        assert jsonl(tmp_path / f"version_{version}" / "predictions").read_text() == whole


# In the first line, at its end, in the middle of a group, at the end of a group, near the end.
# The marks: "half a group" is at the end of a line as well, and -5 is behind a group.
@pytest.mark.parametrize(
    "cut",
    [1, "half a group", -5, *(pytest.param(c, marks=pytest.mark.full) for c in ("line", "group"))],
)
def test_gone_on_with_after_an_interruption_at_any_byte(begun, whole, cut):
    folder, text = begun, jsonl(begun).read_text()
    assert whole.startswith(text)
    ends = [place for place, character in enumerate(text, 1) if character == "\n"]
    place = {"line": ends[0], "half a group": ends[9], "group": ends[11]}.get(cut, cut)
    jsonl(folder).write_text(text[:place])
    predict(folder)
    assert_same(jsonl(folder).read_text(), whole)
    assert jsonl(folder).read_text().startswith(text[: ends[11]] if place >= ends[11] else "")


@pytest.mark.full  # gone on with at any byte, with one batch size
def test_batches_may_have_another_size_and_nothing_is_left_to_do_twice(tmp_path, whole, caplog):
    folder = tmp_path / "data"
    predict(folder, "--trainer.limit_predict_batches=1")
    predict(folder, "--data.validation_prompts_per_batch=2")
    text = jsonl(folder).read_text()
    assert_same(text, whole)
    caplog.clear()
    run = predict(folder)
    assert jsonl(folder).read_text() == text
    assert len(run.datamodule.predict_dataloader()) == 0  # nothing was drawn again
    assert "8 prompts are finished" in caplog.text


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("--model.sampling.temperature=0.5", "model.sampling"),
        ("--data.group_size=2", "data.group_size"),
        ("--seed_everything=7", "seed_everything"),
        ("--data.source.init_args.seed=1", "data.source"),
        ("--model.rewards.vote.weight=0.2", "model.rewards"),
    ],
)
def test_other_settings_are_refused(begun, tmp_path, capsys, argument, name):
    folder, before = begun, jsonl(begun).read_text()
    arguments = [
        *base("--compare"),
        f"--trainer.default_root_dir={tmp_path}",
        f"--predictions.folder={folder}",
    ]
    line = refused(capsys, "predict", *arguments, *BATCHES, argument)
    assert (
        f"was begun with {name}" in line
        or f"was begun with {'data.seed' if 'seed' in name else name}" in line
    )
    assert "or another folder" in line
    assert jsonl(folder).read_text() == before


def test_another_format_is_refused(begun, tmp_path, capsys):
    arguments = [
        *base("--compare"),
        f"--predictions.folder={begun}",
        "--predictions.format=parquet",
    ]
    line = refused(capsys, "predict", *arguments, f"--trainer.default_root_dir={tmp_path}")
    assert "was begun as jsonl" in line


def test_a_damaged_line_in_the_middle_is_an_error_not_lost_work(begun, tmp_path, capsys):
    folder = begun
    lines = jsonl(folder).read_text().splitlines(keepends=True)
    jsonl(folder).write_text("".join([*lines[:5], "garbage\n", *lines[5:]]))
    arguments = [
        *base("--compare"),
        f"--trainer.default_root_dir={tmp_path}",
        f"--predictions.folder={folder}",
    ]
    assert "is no JSON" in refused(capsys, "predict", *arguments, *BATCHES)
    assert len(jsonl(folder).read_text().splitlines()) == len(lines) + 1


@pytest.mark.full  # episodes of both formats are read back: below, and scores
def test_load_dataset_reads_jsonl_and_parquet_back_alike(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(prediction_files, "ROWS_PER_FILE", 12)
    folder, arguments = tmp_path / "parquet", ["--predictions.format=parquet"]
    predict(folder, *arguments, "--trainer.limit_predict_batches=1")
    assert [path.name for path in folder.glob("completions-*")] == [
        "completions-00000-000000000000.parquet"
    ]
    (folder / "completions-00000-000000000003.tmp").write_bytes(b"torn")
    predict(folder, *arguments)
    assert len(list(folder.glob("completions-*.parquet"))) == 3
    predict(tmp_path / "jsonl")
    parquet, lines = (
        read_back(tmp_path / name, tmp_path / "cache") for name in ("parquet", "jsonl")
    )
    assert parquet.features == lines.features
    assert lines.to_list() == [json.loads(line) for line in whole.splitlines()]
    assert_same("\n".join(map(json.dumps, parquet.to_list())), whole)


class Talkative(RewardHead):
    """Adds a column whose values are of several kinds, one of them no number."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        kinds = ["7", math.nan, [1], {"a": 2}]
        said = [kinds[number % 4] for number in range(len(rollout.texts))]
        return RewardOutput(rollout.lengths.float(), columns={"said": said})


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_episodes_and_columns_of_heads_are_read_back(tmp_path, monkeypatch, format):
    monkeypatch.setattr(prediction_files, "ROWS_PER_FILE", 4)
    talkative = {"class_path": "test_prediction_files.Talkative"}
    rewards = {"game": {"head": "EnvironmentReward"}, "talk": {"head": talkative}}
    asked = [*ACTING, f"--model.rewards={json.dumps(rewards)}", f"--predictions.format={format}"]
    folder = tmp_path / "data"
    predict(folder, *asked, "--trainer.limit_predict_batches=1")
    card = (folder / "README.md").read_text()
    predict(folder, *asked)
    predict(folder, *asked)  # nothing is left to do, and the card stays whole
    assert (folder / "README.md").read_text() == card
    data = read_back(folder, tmp_path / "cache").to_list()
    assert len(data) == 32
    for row in data:
        turns = row["episode"]["turns"]
        assert row["completion"] == "\n".join(turn["action"] for turn in turns)
        assert row["episode"]["reward"] == row["scores"]["game"]
    assert [row["extra"]["talk"]["said"] for row in data][:4] == ["7", None, [1], {"a": 2}]


@pytest.mark.slow
def test_scores_that_do_not_apply_are_read_as_numbers(tmp_path):
    """A column of nulls only would otherwise have no type."""
    gate = json.dumps(
        {
            "vote": {"head": "ClusterVote", "weight": 1.0},
            "gated": {
                "head": "MeanLogprob",
                "weight": 1.0,
                "gate": {"head": "vote", "at_least": 2.0},
            },
        }
    )
    predict(tmp_path / "data", f"--model.rewards={gate}")
    data = read_back(tmp_path / "data", tmp_path / "cache")
    assert {row["gated"] for row in data["scores"]} == {None}
    assert data.features["scores"]["gated"].dtype == "float64"


@pytest.mark.slow
def test_prompts_are_not_held_in_memory(tmp_path):
    run = predict(tmp_path / "data")
    assert run.datamodule._predicted.token_ids is None
    assert not run.datamodule._splits


@pytest.mark.slow
def test_two_processes_share_the_work_and_go_on_with_one_s(tmp_path, whole):
    """The same completions, whatever the number of processes at either time."""
    folder = tmp_path / "data"
    predict(folder, "--trainer.limit_predict_batches=2")
    arguments = [
        *base("--compare"),
        f"--trainer.default_root_dir={tmp_path}",
        f"--predictions.folder={folder}",
    ]
    arguments += [
        "--data.validation_prompts_per_batch=4",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    done = run_module(
        "rlif_lightning", ["predict", *arguments, "--trainer.accelerator=cpu"], environment()
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line
        for path in folder.glob("completions-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    records = sorted(
        map(json.loads, lines), key=lambda record: (record["index"], record["completion_number"])
    )
    expected = [json.loads(line) for line in whole.splitlines()]
    for found, wanted in zip(records, expected, strict=True):
        assert (found["index"], found["completion"]) == (wanted["index"], wanted["completion"])
