"""Runs whose chat template drops thoughts: trained, resumed, cut otherwise, on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.episodes import forking
from harness.launches import BASE as ON_ANY
from harness.launches import assert_same_weights, launch, on, weights
from harness.launches import metrics as logged
from harness.runs import assert_resumes, assert_same, fit, parameters, rows

REWARDS = {
    "game": {"head": {"class_path": "EnvironmentReward", "init_args": {"per_turn": True}}},
    "coin": {"head": "Random"},
    "certainty": {"head": "MeanLogprob"},
}
STEPS = {"class_path": "StepDelta", "init_args": {"baseline": "group"}}
PLAYING = [
    f"--model.rewards={json.dumps(REWARDS)}",
    f"--model.advantage={json.dumps(STEPS)}",
    "--trainer.limit_val_batches=0",
    "--model.policy.dtype=float64",
    "--model.sampling.temperature=1.2",
]
SAVING = '--trainer.callbacks+={"class_path": "RunCheckpoints", "init_args": {"every": 1}}'


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_its_ratio_begins_at_one(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    playing = [*PLAYING, *forking(tmp_path / "model"), SAVING]
    assert_resumes(whole, again, *playing)
    for figures in rows(whole).values():
        assert float(figures["episode/contexts"]) > 1.2
        assert float(figures["policy/sampler_gap"]) < 1e-5
        assert float(figures["policy/noise_floor"]) < 1e-5


@pytest.mark.slow
def test_micro_batches_change_no_weight(tmp_path):
    playing = [*PLAYING, *forking(tmp_path / "model"), "--trainer.max_steps=4"]
    one, other = (
        fit(tmp_path / str(tokens), *playing, f"--model.update.micro_batch_tokens={tokens}")
        for tokens in (40, 100_000)
    )
    assert_same(parameters(one), parameters(other), tolerance=1e-7)  # a step moves 1e-4


WAYS = {
    "ddp": on("ddp", 2),
    "sharded": on("fsdp2", 2, "--trainer.strategy.init_args.keep_sharded=true"),
    "split": on("tp", 2),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run on one process that two must repeat, and its arguments."""
    folder = tmp_path_factory.mktemp("one")
    base = [*ON_ANY, *PLAYING, *forking(folder / "model")]
    base += ["--model.update.micro_batch_tokens=200"]
    launch(folder / "run", {"forking": base})
    assert logged(folder / "run", "forking")[0]["episode/contexts"] > 1
    return folder / "run", base


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["ddp", *(pytest.param(way, marks=pytest.mark.full) for way in ("sharded", "split"))]
)
def test_two_processes_play_the_episodes_of_one(one, tmp_path, way):
    """Sharded weights are gathered in every pass, also in those of new contexts."""
    whole, base = one
    launch(tmp_path, {"forking": [*base, *WAYS[way]]}, forks=2)
    assert_same_weights(weights(tmp_path, "forking"), weights(whole, "forking"))
    for left, right in zip(logged(tmp_path, "forking"), logged(whole, "forking"), strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.format.chat=false"], "thoughts='fork' follows a chat template"),
        (["--model.replay.groups=2"], "which model.replay does not keep"),
        (["--data.environment.thoughts=drop"], "thoughts='drop' is unknown"),
    ],
)
def test_what_new_contexts_do_not_go_with_is_refused(tmp_path: Path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", *PLAYING, *forking(tmp_path / "model"), *arguments)
    assert said in capsys.readouterr().err
