"""predict on two processes, interrupted and gone on with: each completion of one process once, none
lost, in order.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.command_line import base, evaluate
from harness.forked import run_module
from harness.processes import environment

ODD = ["--data.source.init_args.validation_size=7", "--data.validation_prompts_per_batch=2"]
TWO = ["--config=configs/strategy/ddp.yaml", "--trainer.devices=2"]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def on_two(folder: Path, *arguments: str) -> None:
    given = ["predict", *base("--compare"), *ODD, *TWO, *arguments]
    given += [f"--trainer.default_root_dir={folder.parent}", f"--predictions.folder={folder}"]
    done = run_module("rlif_lightning", given, environment())
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.full  # test_prediction_files.py shares the work, and goes on with it
def test_predict_on_two_processes_is_that_of_one(tmp_path):
    """Seven prompts, which two cannot share evenly; the first life ends after one batch of each."""
    evaluate("predict", tmp_path / "one", *ODD, f"--predictions.folder={tmp_path / 'whole'}")
    whole = records(tmp_path / "whole" / "completions-00000.jsonl")
    assert len(whole) == 7 * 4
    folder = tmp_path / "two" / "data"
    on_two(folder, "--trainer.limit_predict_batches=1")
    begun = [record for path in folder.glob("completions-*") for record in records(path)]
    assert 0 < len(begun) < len(whole)
    on_two(folder)
    parts = [records(path) for path in sorted(folder.glob("completions-*"))]
    assert len(parts) == 2
    keys = [[(record["index"], record["completion_number"]) for record in part] for part in parts]
    assert sorted(keys[0] + keys[1]) == [
        (p, g) for p in range(7) for g in range(4)
    ]  # none twice, none lost
    assert all(
        [g for _, g in part] == [0, 1, 2, 3] * (len(part) // 4) for part in keys
    )  # groups stay together
    assert all(part == sorted(part) for part in keys)
    found = {(each["index"], each["completion_number"]): each for part in parts for each in part}
    for record in whole:
        other = found[record["index"], record["completion_number"]]
        assert other.pop("scores") == pytest.approx(record.pop("scores"), abs=1e-5)
        assert other == pytest.approx(record, abs=1e-5)
