"""What processes call by name and then unite: two processes that share the rows say what one with
all of them says.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.symptoms import symptoms
from harness.forked import on_two_processes
from harness.programs import PROGRAMS, SANDBOX
from harness.rollouts import handmade
from rlif_lightning.evaluation.metrics import Labels
from rlif_lightning.evaluation.preflight_sample import all_rank_records
from rlif_lightning.records import Rollout
from rlif_lightning.rewards import BehaviourVote, ClusterVote

G, P = 4, 4
# Every group of programs splits into two behaviours and one program without any; answers repeat
# over problems.
ANSWERS = [
    ["3", "3.0", "5", "-"],
    ["3", "6/2", "7", "7"],
    ["5", "5", "5", "8"],
    ["-", "-", "2", "3 km"],
]


def rollout_of(kind: str, rows: list[int]) -> Rollout:
    """The groups of some of four problems, by their rows in the data set."""
    texts = [
        text
        for row in rows
        for text in (PROGRAMS if kind == "code" else [rf"\boxed{{{a}}}" for a in ANSWERS[row]])
    ]
    columns: dict[str, Any] = {
        "entry_point": ["f"] * len(rows),
        "inputs": [["[3, 1, 2], 2", "[], 1"]] * len(rows),
    }
    rollout = handmade(texts, G, **columns)
    return replace(rollout, prompts=replace(rollout.prompts, index=torch.tensor(rows)))


def united(rows: list[int]) -> dict[str, Any]:
    """Everything that is counted by name over all processes."""
    found: dict[str, Any] = {}
    for kind, head in (("code", BehaviourVote(sandbox=SANDBOX)), ("answers", ClusterVote())):
        rollout = rollout_of(kind, rows)
        output = head(rollout)
        assert output.answers is not None
        figures = output.log | symptoms(
            rollout, output.answers, torch.zeros_like(rollout.mask, dtype=torch.float32)
        )
        for name in ("vote/distinct_answers", "vote/top_answer"):
            found[f"{kind} {name}"] = figures[name]
    records = [{"index": row, "completion_number": k} for row in rows for k in range(2)]
    found["records"] = all_rank_records(records)
    labels = Labels()
    labels.update([f"level {row % 2}" for row in rows], torch.tensor(rows))
    return found | {"labels": labels.compute()}


def run_rank(rank: int, folder: Path, shares: list[list[int]]) -> None:
    """One of two processes."""
    (folder / f"{rank}.json").write_text(json.dumps(united(shares[rank])))


@pytest.mark.slow
def test_names_mean_the_same_on_two_processes_as_on_one(tmp_path):
    alone = united(list(range(P)))
    # By hand: two behaviours a problem, each of one problem alone, the larger of 2 in 16
    # completions.
    assert (alone["code vote/distinct_answers"], alone["code vote/top_answer"]) == (2 * P, 2 / 16)
    shares = [[2, 0], [3, 1]]
    on_two_processes(run_rank, tmp_path, shares)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
