"""What evaluation, predict and preflight say of episodes; and what observations do not change."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.episodes import ACTING
from harness.rollouts import handmade, with_observations
from harness.runs import BASE
from rlif_lightning import cli
from rlif_lightning.environments.base import Episode, Turn
from rlif_lightning.evaluation.evaluator import Evaluation, Evaluator
from rlif_lightning.evaluation.preflight_report import print_episodes
from rlif_lightning.masked import mean_over_completion

EPISODES = [
    Episode((Turn("a", 0.25), Turn("b", 0.25)), "completed", 4),
    Episode((Turn("a"), Turn("b"), Turn("c", 1.0)), "completed", 4),
    Episode((Turn("a", 5.0),), "environment_error", 4, failure="KeyError"),
    Episode((Turn("a", 2.0, {"success": 0.0}),), "max_turns", 4),
]


def figures(sampled, has_episodes: bool) -> dict[str, float]:
    evaluator = Evaluator(Evaluation(samples=2))
    evaluator.has_episodes = has_episodes
    evaluator.update(sampled, None, None)
    return {name: found.value for name, found in evaluator.compute(False).figures().items()}


def test_an_evaluation_says_how_episodes_went():
    """Rewards 0.5 and 1; a failure, and 2 that its environment does not call solved."""
    sampled = handmade(["1", "2", "3", "4"], 2)
    plain = figures(sampled, False)
    found = figures(replace(sampled, episodes=EPISODES), True)
    assert found == plain | {
        "turns": (2 + 3 + 1 + 1) / 4,
        "solved": 1 / 4,
        "reward": pytest.approx((0.5 + 1.0 + 2.0) / 3),
    }


def test_figures_are_of_what_the_policy_wrote():
    sampled = handmade(["1", "2", "3", "4", "5", "6"], 2)
    seen = with_observations(sampled)
    assert figures(seen, False) == pytest.approx(figures(sampled, False))
    assert torch.equal(seen.lengths, sampled.lengths)
    for name in ("logprobs", "entropy", "self_certainty"):
        means = [
            mean_over_completion(getattr(each.stats, name), each.mask) for each in (seen, sampled)
        ]
        torch.testing.assert_close(*means)


def test_preflight_says_how_episodes_went(capsys):
    paid = {"stop": "completed", "reward": 1.0, "turns": [{}, {}, {}]}
    failed = {"stop": "environment_error", "reward": None, "turns": [{}, {}]}
    print_episodes([{"episode": each} for each in (paid, paid, paid, failed)])
    assert capsys.readouterr().out == (
        "episodes: 2.8 turns and reward 1.00 on average\n"
        "  ended by completed 75 %, environment_error 25 %\n"
    )
    print_episodes([{"index": 0}])
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_every_stage_shows_turns(tmp_path, capsys):
    given = [each for each in BASE if "compare" not in each and "limit_train" not in each]
    for stage in ("validate", "predict", "preflight"):
        more = ["--prompts=4"] if stage == "preflight" else []
        root = f"--trainer.default_root_dir={tmp_path / stage}"
        cli.main([stage, *given, *ACTING, root, *more])
        shown = capsys.readouterr().out
        [written, *_] = sorted((tmp_path / stage).rglob("*.jsonl"))
        records = [json.loads(line) for line in written.read_text().splitlines()]
        assert all(len(record["episode"]["turns"]) >= 1 for record in records)
        assert any(len(record["episode"]["turns"]) > 1 for record in records)
        assert stage == "predict" or "turns" in shown
        assert stage != "validate" or "solved" in shown
