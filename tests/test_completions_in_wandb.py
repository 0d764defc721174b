"""CompletionWriter's table in Weights & Biases, read back from an offline run."""

from __future__ import annotations

import json

import pytest

from callbacks.completion_writer import table_of
from harness.runs import adding, fit


def test_a_table_has_a_column_for_each_head_and_a_row_for_each_completion():
    record = {"rollout": 1, "prompt": "1+1=", "scores": {"vote": 0.5, "f": None}, "answer": "2"}
    columns, rows = table_of([record, {**record, "scores": {"vote": 1.0, "f": 2.0}}])
    assert columns == ["rollout", "prompt", "answer", "score vote", "score f"]
    assert rows == [[1, "1+1=", "2", 0.5, None], [1, "1+1=", "2", 1.0, 2.0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_offline_run_keeps_a_table_of_each_sample(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = {"offline": True, "save_dir": str(tmp_path), "project": "mine"}
    logger = json.dumps({"class_path": "WandbLogger", "init_args": settings})
    writer = adding("CompletionWriter", every=1, groups=2, show=["wandb"])
    fit(tmp_path, f"--trainer.logger={logger}", writer)
    wandb.finish()
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("completions*.table.json")]
    written = next(tmp_path.rglob("completions.jsonl")).read_text().splitlines()
    records = [json.loads(line) for line in written]
    assert len(records) == 2 * 8  # two rollouts, two groups of four
    rows = sorted(row for table in tables for row in table["data"])
    assert rows == sorted(table_of(records)[1])
    assert {tuple(table["columns"]) for table in tables} == {tuple(table_of(records)[0])}
