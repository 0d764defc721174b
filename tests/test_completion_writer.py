"""CompletionWriter in real runs of the command line: what stands in its files, and what it
shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import CompletionWriter
from callbacks.completion_writer import printable, render, shortened, table_of, write_records
from harness.episodes import ACTING
from harness.runs import ONE, TINY, fit
from rlif_lightning import cli

QUICK = ["--trainer.limit_val_batches=0"]


def write(folder: Path, *arguments: str, **settings) -> cli.RLIFCLI:
    callback = json.dumps({"class_path": "CompletionWriter", "init_args": settings})
    return fit(folder, f"--trainer.callbacks+={callback}", *arguments)


def records(folder: Path) -> list[dict]:
    text = next(folder.rglob("completions.jsonl")).read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    run = write(folder, *QUICK, "--trainer.max_epochs=2", every=2, groups=3)
    return run, folder, records(folder)


@pytest.mark.slow
def test_every_second_rollout_has_three_whole_groups(sampled):
    _, _, found = sampled
    assert [(r["rollout"], r["step"]) for r in found] == [(1, 4)] * 12 + [(3, 12)] * 12
    groups = {(r["rollout"], r["index"]) for r in found}
    assert len(groups) == 6
    assert [r["completion_number"] for r in found] == [0, 1, 2, 3] * 6


def test_advantages_are_those_of_the_update(sampled):
    """GDPO by hand: half the z-score of each head in the group."""
    for start in range(0, 24, 4):
        group, expected = sampled[2][start : start + 4], [0.0] * 4
        for head in ("vote", "certainty"):
            scores = [r["scores"][head] for r in group]
            spread = stdev(scores)
            if spread > 1e-6:
                z = [(score - mean(scores)) / (spread + 1e-4) for score in scores]
                expected = [total + 0.5 * part for total, part in zip(expected, z, strict=True)]
        assert [r["advantage"] for r in group] == pytest.approx(expected, abs=1e-4)


def test_verdicts_follow_the_sum_and_no_gold_answer_is_written(sampled):
    verdicts = [r["correct"] for r in sampled[2]]
    assert set(verdicts) == {True, False}
    for record in sampled[2]:
        truth = str(sum(map(int, record["prompt"].rstrip("=").split("+"))))
        assert record["correct"] == (record["answer"] == truth)
        assert record["completion"].endswith(record["answer"])
        assert not {"gold", "answer_gold"} & set(record)
    wrong_groups = [sampled[2][i : i + 4] for i in range(0, 24, 4)]
    wrong_groups = [group for group in wrong_groups if not any(r["correct"] for r in group)]
    for group in wrong_groups:  # the truth stands nowhere, not even in a group that missed it
        truth = str(sum(map(int, group[0]["prompt"].rstrip("=").split("+"))))
        assert truth not in [value for r in group for value in r.values()]


def test_gold_answers_are_written_on_request_only_where_there_are_any(tmp_path, capsys):
    write(tmp_path, *TINY, *ONE, groups=1, write_gold=True)
    assert records(tmp_path)
    for record in records(tmp_path):
        assert record["gold"] == str(sum(map(int, record["prompt"].rstrip("=").split("+"))))
    with pytest.raises(SystemExit):
        write(tmp_path, "--data.answer_column=null", write_gold=True)
    assert "write_gold=true needs data.answer_column" in capsys.readouterr().err


@pytest.mark.slow
def test_without_labels_there_are_no_verdicts(tmp_path):
    write(tmp_path, *TINY, *ONE, "--data.answer_column=null")
    assert records(tmp_path)
    assert not [record for record in records(tmp_path) if "correct" in record]


@pytest.mark.full  # the parts of a file: below
def test_parquet_holds_the_same_records(sampled, tmp_path):
    write(tmp_path, *QUICK, "--trainer.max_epochs=2", every=2, groups=3, format="parquet")
    folder = next(tmp_path.rglob("completions"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "rollout-000001.parquet",
        "rollout-000003.parquet",
    ]
    assert pq.read_table(folder).to_pylist() == sampled[2]


def test_parquet_parts_without_any_answer_fit_the_others(tmp_path):
    record = {"rollout": 1, "answer": "3", "scores": {"vote": 0.5}, "correct": True}
    write_records(
        tmp_path,
        [{**record, "answer": None, "scores": {"vote": None}}],
        "parquet",
        "rollout-000001",
        "",
    )
    write_records(tmp_path, [record], "parquet", "rollout-000002", "")
    table = pq.read_table(tmp_path / "completions")
    assert table["answer"].to_pylist() == [None, "3"]
    assert table["scores"].to_pylist() == [{"vote": None}, {"vote": 0.5}]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_numbers_that_are_none_are_null_so_that_every_reader_takes_the_file(tmp_path, format):
    """A judge's rating of a completion that it was not asked about is NaN."""
    extra = {"judge": {"rating": float("nan"), "bound": float("inf"), "calls": 0}}
    record = {"rollout": 1, "answer": "3", "scores": {"judge": 0.0}, "extra": extra}
    write_records(tmp_path, [record], format, "rollout-000001", "")
    if format == "jsonl":
        (row,) = load_dataset("json", data_files=str(tmp_path / "completions.jsonl"), split="train")
        read = row["extra"]
    else:
        text = pq.read_table(tmp_path / "completions")["extra"].to_pylist()[0]
        read = json.loads(text, parse_constant=pytest.fail)
    assert read == {"judge": {"rating": None, "bound": None, "calls": 0}}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_episodes_and_columns_of_heads_are_written(tmp_path, format):
    """In Parquet as JSON: what is in them differs from row to row."""
    rewards = {
        "game": {"head": "EnvironmentReward"},
        "reuse": {"head": "ReuseRL"},  # has a column
    }
    played = [*ACTING, *TINY, *ONE, f"--model.rewards={json.dumps(rewards)}"]
    write(tmp_path, *played, format=format)
    if format == "jsonl":
        found = records(tmp_path)
    else:
        found = pq.read_table(next(tmp_path.rglob("completions"))).to_pylist()
        for record in found:
            record |= {name: json.loads(record[name]) for name in ("episode", "extra")}
    assert len(found) == 4
    for record in found:
        turns = record["episode"]["turns"]
        assert record["completion"] == "\n".join(turn["action"] for turn in turns)
        assert list(record["extra"]) == ["reuse"]


def test_a_table_has_no_nested_values():
    """One whose shape differs from row to row is refused by Weights & Biases."""
    turns = [[{"action": "1", "info": {}}], [{"action": "2", "info": {"x": 1}}]]
    made = [{"episode": {"turns": each}, "scores": {"a": 1.0}} for each in turns]
    columns, rows = table_of(made)
    assert columns == ["episode", "score a"]
    assert [json.loads(row[0])["turns"] for row in rows] == turns


# Every run logs into a new folder, so Lightning finds another folder of checkpoints than the one it
# resumes from.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_resumed_run_goes_on_where_the_checkpoint_was_made(sampled, tmp_path):
    """Rollouts 1 and 2, then 3 and 4 in another process: only the third is due, with the
    uninterrupted run's text.
    """
    write(tmp_path / "first", *QUICK, every=2, groups=3)
    [path] = (tmp_path / "first").rglob("*.ckpt")
    more = ["--trainer.max_epochs=2", f"--ckpt_path={path}"]
    write(tmp_path / "second", *QUICK, *more, every=2, groups=3)
    assert {record["rollout"] for record in records(tmp_path / "second")} == {3}
    assert records(tmp_path / "first") + records(tmp_path / "second") == sampled[2]


@pytest.mark.slow
def test_the_terminal_and_tensorboard_show_the_same_table(tmp_path, capsys):
    write(tmp_path, *TINY, every=1, groups=1)
    printed = capsys.readouterr().out
    first = records(tmp_path)[0]
    assert f"rollout 1, problem {first['index']}: {first['prompt']}" in printed
    assert all(record["completion"] in printed for record in records(tmp_path))
    files = [str(path) for path in next(tmp_path.rglob("metrics.csv")).parent.glob("events*")]
    texts = {}
    for file in files:
        events = EventAccumulator(file)
        events.Reload()
        if "completions/text_summary" in events.Tags()["tensors"]:
            texts |= {
                e.step: e.tensor_proto.string_val[0].decode()
                for e in events.Tensors("completions/text_summary")
            }
    assert sorted(texts) == [0, 1]  # as Lightning counts the rollouts of the other curves
    assert first["completion"] in texts[0]
    assert all(line.startswith("    ") for line in texts[0].splitlines())


@pytest.mark.slow
def test_quiet_settings_are_quiet(tmp_path, capsys):
    write(tmp_path, *TINY, *ONE, show=[])
    assert "problem " not in capsys.readouterr().out
    assert records(tmp_path)


def made_up(**changes) -> dict:
    record = {
        "rollout": 1,
        "index": 0,
        "prompt": "p",
        "completion": "c",
        "answer": "1",
        "advantage": 0.5,
    }
    return {**record, "scores": {"vote": 0.25}, "length": 3, "ended": True, **changes}


def test_untrusted_text_neither_steers_the_terminal_nor_is_markup():
    text = render([made_up(completion="\x1b[2J[bold red]x[/]\na\u202eb")], 80, color=False)
    assert "\\x1b[2J[bold red]x[/]⏎a\\u202eb" in text
    assert "\x1b" not in text
    assert printable("5 ≤ π\t") == "5 ≤ π\\t"


def test_copies_are_counted_and_the_best_stands_first():
    rows = [
        made_up(),
        made_up(),
        made_up(completion="better", advantage=1.0),
        made_up(completion="cut", ended=False),
    ]
    lines = [line for line in render(rows, 80, color=False).splitlines() if "0.250" in line]
    assert "better" in lines[0]
    assert "2 x" in lines[1]
    assert "3 cut" in lines[2]
    assert len(lines) == 3


def test_a_long_text_keeps_its_end():
    assert shortened("a" * 50, 50) == "a" * 50
    short = shortened("start" + "x" * 100 + "answer", 30)
    assert len(short) == 30
    assert short.startswith("start")
    assert short.endswith("answer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"groups": 0}, "groups=0"),
        ({"format": "csv"}, "'csv'"),
        ({"show": ["log"]}, "'log'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CompletionWriter(**settings)
