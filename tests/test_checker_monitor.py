"""CheckerMonitor: its figures, which alarm speaks of which scorer, actions, resume, processes."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import CheckerMonitor, CollapseGuard
from callbacks.checker_monitor import foreign_letters
from callbacks.detectors import Watch
from callbacks.steering import read_setting
from harness.files import ROOT
from harness.forked import on_two_ranks
from harness.launches import BASE as DISTRIBUTED
from harness.launches import assert_two_are_one
from harness.python_runs import at
from harness.rollouts import handmade
from harness.runs import (
    LONG,
    adding,
    assert_same,
    callback_of,
    column,
    fit,
    marked,
    parameters,
    saving,
)
from rlif_lightning import CheckerReward, cli
from rlif_lightning.running.checkpoint_faults import read_rest

OVERLAY = f"--config={ROOT / 'configs' / 'related' / 'checker.yaml'}"
HEAD = "--model.rewards.checker.head.init_args"
RULE = f"{HEAD}.scorer.init_args.judge.init_args.rule=benchmarks.checker"
GRADED = "--model.rewards=" + json.dumps(
    {
        "checker": {
            "head": {"class_path": "GradedAnswer", "init_args": {"extractor": {"kind": "hash"}}}
        },
        "gold": {"head": "GoldAnswer", "weight": 0.0},
    }
)


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(folder: Path, *arguments: str) -> cli.RLIFCLI:
    """Four rollouts under the overlay."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CheckerMonitor, rollout")
        return fit(folder, OVERLAY, *LONG, "--trainer.limit_val_batches=0", *arguments)


def said(run: cli.RLIFCLI) -> list[tuple[str, str, int]]:
    """What the monitor wrote down: kind, detector and rollout."""
    return [
        (event["kind"], event["values"].get("detector", ""), event["rollout"])
        for event in marked(Path(run.trainer.log_dir))
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("problem café", (0, 11)),
        ("ab 汉字", (2, 4)),
        ("12 = 7", (0, 0)),
        ("αβ", (2, 2)),
    ],
)
def test_letters_of_other_scripts(text, found):
    assert foreign_letters(handmade([text], 1)) == found


def test_a_prompt_without_letters_has_every_script():
    rollout = handmade(["汉字"], 1)
    rollout.prompts.texts[0] = "3+4="  # type: ignore[index]
    assert foreign_letters(rollout) == (0, 2)


def test_figures_are_over_both_data_ranks(tmp_path):
    """One of two completions without a search and none of three; 4 of 4 letters and 0 of 6."""
    texts = [["= 汉字", "汉字"], ["= ab", "=", "= abcd"]]

    def measured(rank: int) -> dict[str, float]:
        found = {}
        outputs = {"rollout": handmade(texts[rank], len(texts[rank]))}
        module = SimpleNamespace(log=lambda name, value, **_: found.update({name: value}))
        CheckerMonitor(search="=").measure(None, module, outputs)  # type: ignore[arg-type]
        return found

    expected = {"checker/no_search": 1 / 5, "checker/foreign": 4 / 10}
    assert on_two_ranks(measured, tmp_path) == [expected] * 2


@pytest.mark.parametrize(
    ("name", "figures", "speaks"),
    [
        ("collapsed", [0.96] * 3, True),
        ("collapsed", [0.95] * 9, False),
        ("hackable", [0.2, 0.76, 0.77], True),
        ("hackable", [0.76, 0.75, 0.75], False),
        ("shrinking", [40.0] * 5 + [19.0] * 3, True),
        ("shrinking", [40.0] * 5 + [21.0] * 9, False),
        ("skipped_search", [0.76] * 3, True),
        ("skipped_search", [0.75] * 3, False),
        ("foreign_script", [0.11] * 3, True),
        ("foreign_script", [0.1] * 3, False),
    ],
)
def test_limits_by_hand(name, figures, speaks):
    """A median of three is judged; lengths are relative to the mean of the first five rollouts."""
    watch = Watch(CheckerMonitor(search="x").detectors)
    for value in figures:
        watch.update({name: value})
    assert (watch.active == [name]) == speaks


@pytest.mark.full  # the next run but one is under the overlay as well
def test_the_overlay_trains_and_logs(tmp_path):
    made = run(tmp_path)
    head = made.model.rewards.heads["checker"]
    assert isinstance(head, CheckerReward)
    assert (head.alpha, head.min_confidence) == (1.0, 0.65)
    assert made.model.rewards.weights.tolist() == [1.0, 0.0]
    names = ("support", "neutral", "contradiction")
    shares = [column(tmp_path, f"checker/{name}") for name in names]
    assert torch.tensor(shares).sum(0).tolist() == pytest.approx([1] * 4)
    assert all(0 < each < 1 for each in shares[0])
    assert all(map(math.isnan, column(tmp_path, "checker/foreign")))  # digits have no script
    assert all(0 <= each < 1 for each in column(tmp_path, "checker/no_search"))
    assert len(column(tmp_path, "checker/alarms")) == 4
    assert float(made.trainer.callback_metrics["policy/grad_norm"]) > 0


@pytest.mark.full  # test_checker.py has alpha=0, bit for bit, without a run
def test_a_neutral_checker_and_alpha_0_are_the_base_alone(tmp_path):
    """Bit for bit; the one says that its signal has collapsed, the other's is measured."""
    neutral = run(tmp_path / "neutral", f"{RULE}.always_neutral")
    assert said(neutral) == [("alarm", "collapsed", 3)]
    measured = run(tmp_path / "measured", f"{HEAD}.alpha=0")
    alone = fit(
        tmp_path / "alone",
        OVERLAY,
        *LONG,
        "--trainer.limit_val_batches=0",
        "--trainer.callbacks=[]",
        GRADED,
    )
    for other in (neutral, measured):
        assert_same(parameters(alone), parameters(other))
    moderate = run(tmp_path / "moderate")
    name = "model.model.layers.0.self_attn.q_proj.weight"
    assert any(
        not torch.equal(value, parameters(alone)[name])
        for name, value in parameters(moderate).items()
    ), name


def test_a_supporting_checker_is_hackable_and_can_be_switched_off(tmp_path):
    """From the alarm on the factor is 1; `scale` names alpha."""
    action = adding("CheckerMonitor", action="adjust", scale={"rewards.checker.alpha": 0.0})
    made = run(tmp_path, "--trainer.callbacks=[]", action, f"{RULE}.always_supporting")
    assert said(made) == [("alarm", "hackable", 3), ("adjust", "", 3)]
    assert read_setting(made.trainer, made.model, "rewards.checker.alpha") == 0
    rewards = column(tmp_path, "reward/checker/mean")
    assert max(rewards[3:]) < 1 < min(rewards[:3]) * 1.9 / max(rewards[3:])
    event = marked(Path(made.trainer.log_dir))[0]
    assert "checker/support, 1 in the median of 3 rollouts, is above 0.75" in event["message"]
    assert event["message"].endswith(
        "This is a fault of the reward: it has no signal, or it is gamed."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_resumed_run_is_the_whole_one(tmp_path):
    """From before the alarm and from after it; also what the alarm switched off."""
    action = adding(
        "CheckerMonitor",
        action="adjust",
        scale={"rewards.checker.alpha": 0.0},
        baseline=1,
        detectors={"hackable": {"window": 2}},
        search="=",
    )
    given = [
        "--trainer.callbacks=[]",
        action,
        f"{RULE}.always_supporting",
        saving(every=1, keep=None),
    ]
    whole = run(tmp_path / "whole", *given)
    states = callback_of(whole, CheckerMonitor).state_dict()
    assert states["num_actions"] == 1
    for rollout in (1, 3):
        path = at(tmp_path / "whole" / "version_0" / "checkpoints", rollout)
        again = run(tmp_path / str(rollout), *given, f"--ckpt_path={path}")
        found = callback_of(again, CheckerMonitor).state_dict()
        assert found["detectors"] == states["detectors"]
        assert found["num_actions"] == 1
        assert again.model.rewards.heads["checker"].alpha == 0
        assert_same(parameters(whole), parameters(again))


@pytest.mark.full  # figures of two ranks: above, and test_contracts.py
@pytest.mark.parametrize("kind", ["ddp", pytest.param("tp", marks=pytest.mark.full)])
def test_two_processes_are_one(tmp_path, kind):
    monitor = adding(
        "CheckerMonitor",
        baseline=1,
        detectors={"hackable": {"window": 1, "bound": 0.1}},
        search="=",
    )
    given = [*DISTRIBUTED, OVERLAY, "--trainer.callbacks=[]", monitor, saving(every=1, keep=None)]
    logged = assert_two_are_one(tmp_path, given, kind)
    alarms = [float(row["checker/alarms"]) for row in logged if row.get("checker/alarms")]
    assert alarms[-1] == 1
    one, other = (
        [(event["rollout"], event["kind"]) for event in marked(tmp_path / name / "version_0")]
        for name in ("one", kind)
    )
    assert one == other
    last = len(alarms)
    paths = [at(tmp_path / name / "version_0" / "checkpoints", last) for name in ("one", kind)]
    one, other = (states_of(read_rest(path)) for path in paths)
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state["active"] == other[name]["active"]
        assert state["recent"] == pytest.approx(other[name]["recent"], nan_ok=True)


def states_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    [state] = [each for name, each in checkpoint["callbacks"].items() if "CheckerMonitor" in name]
    return state["detectors"]


def test_a_run_without_a_checker_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit):
        fit(tmp_path, adding("CheckerMonitor"))
    assert "CheckerMonitor watches a CheckerReward, and this run has none; its rewards: vote," in (
        capfd.readouterr().err
    )


def test_two_guards_may_not_both_roll_back(tmp_path, capfd):
    with pytest.raises(SystemExit):
        run(
            tmp_path,
            "--trainer.callbacks=[]",
            adding("CheckerMonitor", action="rollback"),
            adding("CollapseGuard", action="rollback"),
        )
    assert "action=rollback of CheckerMonitor and CollapseGuard" in capfd.readouterr().err


def test_settings_are_checked():
    with pytest.raises(ValueError, match="is not a regular expression"):
        CheckerMonitor(search="(")
    with pytest.raises(ValueError, match="action='pray'"):
        CheckerMonitor("pray")
    assert "skipped_search" not in CheckerMonitor().detectors
    assert "skipped_search" in CheckerMonitor(search="x").detectors
    assert CheckerMonitor.usual.keys().isdisjoint(CollapseGuard.usual)
