"""evaluation.json, completions with verdicts and tables, from real runs: between steps, before,
after, and alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.command_line import base, evaluate, refused
from harness.runs import FEW, fit, metrics
from rlif_lightning import cli


def entries(folder: Path, version: int = 0) -> list[dict]:
    return json.loads((folder / f"version_{version}" / "evaluation.json").read_text())


def completions(folder: Path, name: str) -> list[dict]:
    path = folder / "version_0" / "evaluated" / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_is_measured_at_its_end_and_one_that_is_over_is_not(tmp_path, capsys):
    """The start was measured before the break; without the end a run had no result."""
    given = [*FEW, "--compare=true", "--model.evaluation.samples=1", "--ckpt_path=auto"]
    fit(tmp_path, *given, "--trainer.max_steps=4")
    capsys.readouterr()
    fit(tmp_path, *given, "--trainer.max_steps=8")
    assert "Held-out problems, after training, 8 problems" in capsys.readouterr().out
    assert [entry["rollouts"] for entry in entries(tmp_path, 1)] == [2]
    fit(tmp_path, *given, "--trainer.max_steps=8")
    assert "Held-out problems" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_rollout_before_and_after(tmp_path, capsys):
    fit(
        tmp_path,
        *FEW,
        "--compare=true",
        "--model.evaluation.samples=2",
        "--trainer.val_check_interval=1",
        "--trainer.check_val_every_n_epoch=1",
    )
    found = entries(tmp_path)
    places = [(entry["stage"], entry["rollouts"], entry["optimizer_steps"]) for entry in found]
    assert places == [
        ("val", 0, 0),
        ("val", 1, 4),
        ("val", 2, 8),
    ]  # after training = the last one between steps
    logged = [float(row["val/accuracy"]) for row in metrics(tmp_path) if row.get("val/accuracy")]
    assert [entry["figures"]["accuracy"]["value"] for entry in found] == pytest.approx(
        [*logged[:2], logged[-1]]
    )
    lows = [
        float(row["val_low/accuracy"]) for row in metrics(tmp_path) if row.get("val_low/accuracy")
    ]
    assert [entry["figures"]["accuracy"]["low"] for entry in found] == pytest.approx(
        [*lows[:2], lows[-1]]
    )
    for entry in found:
        assert (entry["problems"], entry["samples"], entry["confidence"]) == (8, 2, 0.95)
        assert all(
            figure["low"] <= figure["value"] <= figure["high"]
            for figure in entry["figures"].values()
        )
        records = completions(tmp_path, f"val-rollout-{entry['rollouts']:06d}.jsonl")
        sampled = [record["correct"] for record in records if record["kind"] == "sample"]
        assert len(sampled) == 8 * 2
        assert sum(sampled) / 16 == pytest.approx(entry["figures"]["accuracy"]["value"])
        greedy = [record["correct"] for record in records if record["kind"] == "greedy"]
        assert sum(greedy) / 8 == pytest.approx(entry["figures"]["greedy_accuracy"]["value"])
    table = capsys.readouterr().out
    assert "before and after training" in table
    row = next(line for line in table.splitlines() if line.startswith("│ accuracy"))
    old, new = (100 * found[place]["figures"]["accuracy"]["value"] for place in (0, -1))
    assert f"{old:.1f} %" in row
    assert f"{new:.1f} %" in row
    assert f"{new - old:+.1f} %" in row
    assert "[" in row


def test_greedy_decoding_has_the_least_length_of_the_evaluation(tmp_path):
    sampling = "--model.evaluation.sampling={max_new_tokens: 20, min_new_tokens: 20}"
    evaluate("validate", tmp_path, sampling, "--model.evaluation.samples=1")
    found = completions(tmp_path, "val-rollout-000000.jsonl")
    assert {record["kind"] for record in found} == {"sample", "greedy"}
    assert {record["length"] for record in found} == {20}


@pytest.mark.full  # every rollout: above
def test_every_third_rollout_across_epochs(tmp_path):
    """An epoch has two rollouts here: the trainer counts over them once check_val_every_n_epoch is
    null.
    """
    arguments = [
        "--trainer.val_check_interval=3",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.max_epochs=3",
    ]
    fit(
        tmp_path,
        *arguments,
        "--model.evaluation.samples=2",
        "--model.evaluation.save_completions=false",
    )
    assert [entry["rollouts"] for entry in entries(tmp_path)] == [3, 6]
    assert not (tmp_path / "version_0" / "evaluated").exists()


@pytest.mark.parametrize(
    ("command", "stage"),
    [pytest.param("validate", "val", marks=pytest.mark.full), ("test", "test")],
)
def test_a_table_with_intervals_and_subsets(tmp_path, capsys, command, stage):
    source = tmp_path / "problems.jsonl"
    rows = [
        {"question": f"{n}+{n}+1=", "answer": str(2 * n + 1), "level": "low" if n < 3 else "high"}
        for n in range(8)
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    files = json.dumps({"class_path": "LocalFiles", "init_args": {"validation": str(source)}})
    subset = [
        "--model.evaluation.subset_column=level",
        "--model.evaluation.pass_at=[2,4]",
        f"--data.source={files}",
    ]
    arguments = [
        *base("--compare", "source.init_args"),
        f"--trainer.default_root_dir={tmp_path}",
        *subset,
    ]
    cli.main([command, *arguments])
    printed = capsys.readouterr().out
    (entry,) = entries(tmp_path)
    assert entry["stage"] == stage
    assert {label: part["problems"] for label, part in entry["subsets"].items()} == {
        "high": 5,
        "low": 3,
    }
    figures = {name: figure["value"] for name, figure in entry["figures"].items()}
    assert figures["accuracy"] <= figures["pass@2"] <= figures["pass@4"] <= figures["pass@8"]
    parts = [entry["subsets"][label]["figures"]["accuracy"]["value"] for label in ("high", "low")]
    assert (5 * parts[0] + 3 * parts[1]) / 8 == pytest.approx(figures["accuracy"])
    interval = entry["figures"]["accuracy"]
    assert f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" in printed
    assert "Validate metric" not in printed  # Lightning's own table says the same without intervals
    assert f"{100 * parts[1]:.1f} %" in next(
        line for line in printed.splitlines() if line.startswith("│ low")
    )
    assert {
        record["subset"] for record in completions(tmp_path, f"{stage}-rollout-000000.jsonl")
    } == {"high", "low"}


def test_an_unknown_subset_column_is_told_in_one_line(tmp_path, capsys):
    arguments = [
        *base("--compare"),
        f"--trainer.default_root_dir={tmp_path}",
        "--model.evaluation.subset_column=level",
    ]
    assert "subset_column='level' is not in the validation split; its columns are" in refused(
        capsys, "validate", *arguments
    )


def test_nothing_is_written_in_a_fast_dev_run(tmp_path):
    evaluate("validate", tmp_path, "--trainer.fast_dev_run=true")
    assert not list(tmp_path.rglob("evaluation.json"))
