"""Runs of what comes with environments: the overlay of ReuseRL, its model's script, the example."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
import torch

from harness.files import ROOT
from harness.runs import assert_same, differences, parameters, rows
from rlif_lightning import cli
from rlif_lightning.environments.games import CountdownStepwise
from rlif_lightning.environments.problems import CountdownProblems

QUIET = [
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
]
OVERLAY = [
    "--config=configs/quickstart.yaml",
    "--config=configs/related/reuserl.yaml",
    *QUIET,
    "--data.source.init_args.size=6",
    "--data.source.init_args.validation_size=8",
    "--data.prompts_per_rollout=2",
    "--data.group_size=4",
    "--model.update.updates_per_rollout=1",
    "--trainer.max_epochs=1",
]
SAVING = '--trainer.callbacks+={"class_path": "RunCheckpoints", "init_args": {"every": 1}}'


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def maker():
    """The script that makes a model, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import make_countdown_model

        yield make_countdown_model
        for name in ("make_countdown_model", "make_base_model"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def untaught(maker, tmp_path_factory) -> Path:
    """A model of the script that has learned nothing."""
    folder = tmp_path_factory.mktemp("countdown")
    torch.manual_seed(0)
    tokenizer = maker.build_tokenizer()
    model = maker.base.build_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_players_play_by_the_rules(maker):
    tokenizer, rng, ends = maker.build_tokenizer(), random.Random(1), set()
    for row in CountdownProblems(size=10).load("train"):
        text = maker.play(row, rng)
        ids = tokenizer(row["question"] + text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        game = CountdownStepwise()
        game.reset(**row)
        actions = [part.rpartition("\n")[2] for part in text.split(maker.END)[:-1]]
        steps = [game.step(action) for action in actions]
        assert not any(step.done for step in steps[:-1])
        ends.add(steps[-1].done)
        assert len(actions) == maker.MAX_TURNS or steps[-1].done
        assert text.endswith(maker.END) == steps[-1].done
    assert ends == {True, False}


def test_ways_are_those_that_trying_finds(maker):
    for row in CountdownProblems(size=4).load("train"):
        numbers, target = tuple(sorted(row["numbers"])), row["target"]
        found = maker.ways(numbers, target)
        assert found
        for move, after in maker.moves(numbers):
            reached = [after] if maker.games.result(*move) != target else []
            while reached and move not in found:  # no way on from a move that is no way
                some = reached.pop()
                for step, later in maker.moves(some):
                    assert maker.games.result(*step) != target
                    reached.append(later)


@pytest.mark.slow
def test_the_overlay_trains_and_resumes_bit_for_bit(tmp_path, untaught):
    easy = "--data.environment.make=harness.environments.Easy"  # Countdown is too hard for it
    given = [*OVERLAY, SAVING, easy, f"--model.policy.name={untaught}"]

    def fit(folder: Path, *more: str):
        return cli.main(["fit", *given, f"--trainer.default_root_dir={folder}", *more])

    run, found = fit(tmp_path / "whole"), rows(tmp_path / "whole")
    assert run.trainer.global_step == 3
    for row in found.values():
        assert float(row["environment/solved"]) > 0
        assert float(row["reuse/segments"]) <= float(row["reuse/actions"])
    saved = next((tmp_path / "whole").rglob("rollout=000002.ckpt"))
    again = fit(tmp_path / "again", f"--ckpt_path={saved}")
    assert_same(parameters(run), parameters(again))
    heads = [it.model.rewards.heads["reuse"] for it in (run, again)]
    assert heads[0].strings == heads[1].strings != []
    assert torch.equal(*(head.get_buffer("memory") for head in heads))
    later = rows(tmp_path / "again")
    assert later
    assert not differences({place: found[place] for place in later}, later)


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    command = (ROOT / "examples" / "my_environment.py").read_text()
    options = re.findall(r"--(?:data|model)\.\S+ (?:'[^']*'|\S+)", command)
    given = [option.replace(" ", "=", 1).replace("'", "") for option in options]
    assert len(given) == 4
    run = cli.main(
        [
            "fit",
            "--config=configs/quickstart.yaml",
            *given,
            *QUIET,
            f"--trainer.default_root_dir={tmp_path}",
            "--data.source.init_args.size=8",
            "--data.prompts_per_rollout=4",
            "--data.group_size=4",
        ]
    )
    metrics = run.trainer.callback_metrics
    assert 1 < float(metrics["episode/turns"]) < 2
    assert 0 < float(metrics["environment/solved"]) < 1
    assert 0 < float(metrics["reward/right/mean"]) < 1
