"""Runs of Turing-RL and its baselines on templated dialogues, with rules as judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.turing import heads
from benchmarks.turing_dialogues import make_model, rows
from harness.files import ROOT
from harness.launches import launch, on
from harness.runs import BASE, assert_same, column, metrics, parameters, whole_and_resumed
from rlif_lightning import PairwiseJudgeHead, RuleJudge, cli

OVERLAYS = [f"--config={ROOT}/configs/related/{name}.yaml" for name in ("turing", "turing_cpu")]


@pytest.fixture
def given(tmp_path, monkeypatch) -> list[str]:
    """Arguments of a run on 16 dialogues, of an untrained model in float64.

    An untrained model never writes a marker, so the head takes all of a completion as the reply.
    """
    monkeypatch.chdir(ROOT)
    folder, path = tmp_path / "model", tmp_path / "rows.jsonl"
    make_model(folder)
    path.write_text("\n".join(map(json.dumps, rows(0, 16))))
    source = {"class_path": "LocalFiles", "init_args": {"train": str(path)}}
    base = [each for each in BASE if "source" not in each]
    plain = heads("human", 5.0)
    plain["human"]["head"]["init_args"]["reasons"] = False
    return [
        *base,
        *OVERLAYS,
        f"--data.source={json.dumps(source)}",
        f"--model.policy.name={folder}",
        "--model.policy.dtype=float64",
        "--data.prompts_per_rollout=8",
        "--data.group_size=4",
        "--trainer.limit_val_batches=0",
        f"--model.rewards={json.dumps(plain)}",
        "--model.optimizer.lr=1e-3",
    ]


def train(folder: Path, given: list[str], *arguments: str) -> cli.RLIFCLI:
    root = f"--trainer.default_root_dir={folder}"
    return cli.main(["fit", *given, root, *arguments])


@pytest.mark.full  # every reply is judged in the other run
def test_the_overlays_judge_by_a_rule_and_train(given, tmp_path):
    kept = [each for each in given if "rewards" not in each]
    run = train(tmp_path / "run", kept)
    head = run.model.rewards.heads["human"]
    assert isinstance(head, PairwiseJudgeHead)
    assert isinstance(head.judge, RuleJudge)
    assert (head.cap, head.reasons, head.max_length_penalty) == (5.0, True, 0.25)
    assert (run.model.plan.num_updates, run.trainer.global_step) == (1, 2)
    # An untrained model writes a word before a marker now and then.
    assert all(share < 0.5 for share in column(tmp_path / "run", "turing/well_formed"))


def test_every_reply_is_judged_and_the_policy_moves(given, tmp_path):
    run = train(tmp_path / "run", given)
    rows = [row for row in metrics(tmp_path / "run") if row.get("turing/rating")]
    assert len(rows) == 2
    assert all(1 <= float(row["turing/rating"]) <= 7 for row in rows)
    assert all(float(row["turing/well_formed"]) > 0.9 for row in rows)
    assert all(-8 <= float(row["reward/likely/mean"]) < 0 for row in rows)
    assert run.trainer.callback_metrics["policy/grad_norm"] > 0


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(given, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.runs.BASE", given)
    whole, second = whole_and_resumed(tmp_path, "EntropyMonitor")
    assert_same(parameters(whole), parameters(second))


@pytest.mark.full  # test_contracts.py has the heads on two ranks
def test_two_processes_are_one(given, tmp_path):
    """They ask about half of the replies each, and log the same figures."""
    train(tmp_path / "alone", given)
    launch(tmp_path, {"both": ["fit", *given, *on("ddp", 2)]}, forks=2)
    for name in ("turing/rating", "reward/human/mean", "reward/similar/mean", "policy/grad_norm"):
        found = [column(tmp_path / folder, name) for folder in ("alone", "both")]
        assert found[0] == pytest.approx(found[1], abs=1e-6)
