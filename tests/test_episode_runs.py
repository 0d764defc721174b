"""Runs with an environment: trained, evaluated, written, resumed, and on two processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from harness.episodes import ENVIRONMENT, PLAYING, SMALL
from harness.forked import run_module
from harness.launches import BASE as ON_ANY
from harness.launches import assert_same_weights, launch, on, weights
from harness.launches import metrics as logged
from harness.processes import environment
from harness.runs import BASE, assert_resumes, assert_same, differences, fit, rows

ON_SEVERAL = [*ON_ANY, *PLAYING, "--model.sampling.temperature=1.2"]
REFERENCE = "rlif_lightning.judges.rules.reference_numbers"
RULE = {"class_path": "RuleJudge", "init_args": {"rule": REFERENCE}}
STEPS = {"class_path": "StepRubricJudgeHead", "init_args": {"judge": RULE}}
PARTS = {
    "head": STEPS,
    "scorer": {"class_path": "JudgeScorer", "init_args": {"judge": RULE}},
    "evidence": {"class_path": "EvidenceColumn", "init_args": {"column": "question"}},
}
HOLDER = json.dumps({"class_path": "CheckerReward", "init_args": PARTS})
WRITTEN = {"judge": RULE, "column": "answer"}
PAIR, NEAR = (
    json.dumps({"class_path": name, "init_args": WRITTEN})
    for name in ("PairwiseJudgeHead", "SimilarityJudgeHead")
)
LIKELY = json.dumps({"class_path": "TargetLogprob", "init_args": {"column": "answer"}})
WRITER = '--trainer.callbacks+={"class_path": "CompletionWriter", "init_args": {"every": 1}}'
SAVING = '--trainer.callbacks+={"class_path": "RunCheckpoints", "init_args": {"every": 1}}'


@pytest.mark.full  # test_episodes.py has each part without a run
def test_a_run_with_an_environment_resumes_bit_for_bit(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert_resumes(whole, again, *PLAYING, WRITER, SAVING)
    found = rows(whole)
    figures = next(row for (_, is_val), row in found.items() if not is_val)
    assert 1 < float(figures["episode/turns"]) <= 3
    assert float(figures["episode/observed"]) > 0
    shares = [float(figures[f"episode/{stop}"]) for stop in ("completed", "max_sampled_tokens")]
    assert sum(shares) == pytest.approx(1)
    assert {is_val for _, is_val in found} == {True, False}  # evaluation plays episodes too
    lines = next(whole.rglob("completions*.jsonl")).read_text().splitlines()
    for record in map(json.loads, lines):
        episode = record["episode"]
        assert record["completion"] == "\n".join(turn["action"] for turn in episode["turns"])
        assert record["scores"]["game"] == episode["reward"]
        assert episode["turns"][0]["observation"].startswith("1+")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A run on one process that two and four must repeat."""
    folder = tmp_path_factory.mktemp("one")
    launch(folder, {"acting": ON_SEVERAL})
    assert logged(folder, "acting")[0]["episode/turns"] > 1
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.full)])
def test_several_processes_play_the_episodes_of_one(one, tmp_path, processes):
    launch(tmp_path, {"acting": [*ON_SEVERAL, *on("ddp", processes)]}, forks=processes)
    assert_same_weights(weights(tmp_path, "acting"), weights(one, "acting"))
    for left, right in zip(logged(tmp_path, "acting"), logged(one, "acting"), strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_was_killed_between_turns_goes_on_as_if_it_had_not_been(tmp_path):
    """32 episodes of a rollout: the kill falls into the second one, while some are over."""
    mark = tmp_path / "mark"
    mark.touch()
    arguments = {**ENVIRONMENT["arguments"], "while_there": str(mark), "after": 40}
    deadly = {**ENVIRONMENT, "make": "harness.episodes.Deadly", "arguments": arguments}
    given = [*BASE, *PLAYING, f"--data.environment={json.dumps(deadly)}", SAVING]

    def run(name: str) -> int:
        root = f"--trainer.default_root_dir={tmp_path / name}"
        given_of_it = ["fit", *given, root, "--trainer.limit_val_batches=0", "--ckpt_path=auto"]
        return run_module("rlif_lightning", given_of_it, environment()).returncode

    assert run("lives") == -signal.SIGKILL
    over, going = map(int, mark.read_text().split())
    assert over > 32
    assert going > 1
    mark.unlink()
    assert run("lives") == run("whole") == 0
    assert differences(rows(tmp_path / "whole"), rows(tmp_path / "lives")) == []
    states = [
        torch.load(next((tmp_path / name).rglob("rollout=000002.ckpt")), weights_only=True)
        for name in ("whole", "lives")
    ]
    assert_same(*(each["state_dict"] for each in states))


@pytest.mark.full  # test_episodes.py begins episodes on two
def test_processes_of_one_data_rank_share_the_first_one_s_environments(tmp_path):
    """Under tensor parallelism; the second process would draw other tokens, and raise if it made
    an environment.
    """
    uneven = "--model.engine.class_path=harness.uneven.UnevenEngine"
    base = [*ON_ANY, *PLAYING, *SMALL, "--model.sampling.temperature=1.2"]
    base += ["--data.environment.make=harness.uneven.FirstAlone", uneven]
    failing = [*base, "--data.environment.make=harness.episodes.Failing"]
    runs = {"acting": base, "failing": [*failing, "--data.environment.max_failed=1.0"]}
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, runs)
    launch(two, {name: [*given, *on("tp", 2)] for name, given in runs.items()}, forks=2)
    for name in runs:
        assert_same_weights(weights(two, name), weights(one, name))
        for left, right in zip(logged(two, name), logged(one, name), strict=True):
            assert left == pytest.approx(right, rel=1e-5, abs=1e-5, nan_ok=True)
    assert logged(one, "acting")[0]["episode/turns"] > 1
    assert logged(one, "failing")[0]["episode/environment_error"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.engine=harness.decoding.Bfloat16Sampler"], "Bfloat16Sampler draws single turns"),
        (["--model.sampling.min_new_tokens=2"], "min_new_tokens=2 is for single turns"),
        (["--model.answer_tokens.factor=0.5"], "model.answer_tokens locates an answer"),
        (
            [f"--model.rewards.held.head={HOLDER}"],
            "StepRubricJudgeHead reads a completion as one text",
        ),
        ([f"--model.rewards.likely.head={LIKELY}"], "TargetLogprob reads a completion as one text"),
        ([f"--model.rewards.pair.head={PAIR}"], "PairwiseJudgeHead reads a completion as one text"),
        ([f"--model.rewards.near.head={NEAR}"], "SimilarityJudgeHead reads a completion as one"),
        (["--data.environment.make=harness.episodes.Nothing"], "cannot be imported"),
        (["--data.environment.arguments={'turn': 3}"], "no environment could be made"),
    ],
)
def test_what_would_misread_an_episode_is_refused_in_setup(tmp_path: Path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        fit(tmp_path, *PLAYING, *arguments)
    assert said in capsys.readouterr().err
