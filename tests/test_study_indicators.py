"""Label-free warnings of the study's runs: their figures, leads and false alarms by hand."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from benchmarks.study_arms import JUDGING
from benchmarks.study_indicators import (
    WATCHED,
    evaluations,
    figures,
    first_events,
    first_raised,
    indicators_table,
    judge,
    warning_row,
)
from benchmarks.study_rows import FIGURES, Run
from benchmarks.study_rules import Warns
from callbacks.majorities import majority_column, majority_figures
from harness.rollouts import handmade
from rlif_lightning.data.prompt_table import PromptTable

HOLDS, FALLS = [0.5, 0.8, 0.9, 0.9, 0.9], [0.5, 0.8, 0.9, 0.5, 0.1]


def visit(text: str, problem: int = 4) -> list[tuple[int, str | None]]:
    return [(problem, None if answer == "-" else answer) for answer in text.split()]


def test_the_figures_of_one_problem_by_hand():
    """Majorities 3, 3, 5, 3, none: flips no, yes, yes, yes; ratios 1/2, 1/2, 1/4, 3/4, 0."""
    visits = [visit(text) for text in ("3 3 4 5", "3 3.0 4 5", "5 - - -", "3 3 3 1", "- - - -")]
    found = figures(visits)
    assert math.isnan(found["flip_rate"][0])
    assert found["flip_rate"][1:] == [0, 1, 1, 1]
    assert found["majority_ratio"] == pytest.approx([1 / 2, 1 / 2, 5 / 12, 1 / 2, 2 / 5])
    sixth = figures([*visits, visit("1 1 1 1")])["majority_ratio"][5]
    assert sixth == pytest.approx((1 / 2 + 1 / 4 + 3 / 4 + 0 + 1) / 5)  # the last five


def test_the_figures_are_means_over_problems():
    """Of two problems one flips; one is unanimous, the other agrees by half."""
    before = visit("3 3", 0) + visit("7 8", 1)
    after = visit("4 4", 0) + visit("7 9", 1)
    found = figures([before, after])
    assert found["flip_rate"][1] == 0.5
    assert found["majority_ratio"] == [0.75, 0.75]


def test_they_are_the_log_s_figures():
    """On the same visits CollapseGuard logs the same, as training problems come back."""
    draw, table, visits, logged = random.Random(0), PromptTable(), [], []
    for _ in range(8):
        answers = [draw.choice(["1", "2", "3.0", "3", "-"]) for _ in range(12)]
        rollout = handmade(answers, 4)
        given = [None if each == "-" else each for each in answers]
        rows = torch.tensor([5, 6, 7])
        rollout = replace(rollout, prompts=replace(rollout.prompts, index=rows))
        logged.append(majority_figures(rollout, given, majority_column(table)))
        table.gather()
        visits.append([(5 + place // 4, answer) for place, answer in enumerate(given)])
    for name, values in figures(visits).items():
        theirs = [each[f"vote/{name}"] for each in logged]
        assert values == pytest.approx(theirs, nan_ok=True)


def run_of(accuracy, flips, events="", arm="vote-hot", seed=40, alarm=""):
    """A run with an evaluation every 30 rollouts, and with so many flips at each but the first."""
    rollouts = [30 * i for i in range(len(accuracy))]
    series = " ".join(f"{at}:{value}" for at, value in zip(rollouts[1:], flips, strict=True))
    curves = {name: [0.5] * len(accuracy) for name in FIGURES} | {"accuracy": list(accuracy)}
    warnings = {"events": events, "flip_rate": series, "majority_ratio": "0:0.5 30:0.71"}
    return Run(arm, seed, rollouts, [0.0] * 5, curves, {"first alarm": alarm}, warnings)


def test_a_warning_s_first_rollout():
    run = run_of(HOLDS, [0.3, 0.1, 0.4, 0.2], "unanimous:21", alarm="12")
    assert first_raised(run, "flip_rate", 300) == 90  # .3 is not above .3
    assert first_raised(run, "flip_rate", 60) is None
    assert first_raised(run, "majority_ratio", 300) == 30
    assert first_raised(run, "unanimous", 300) == 21
    assert first_raised(run, "consensus", 300) is None
    assert first_raised(run, "any alarm", 300) == 12


def test_leads_are_counted_from_an_interval_of_evaluations_on():
    """The loss is seen at 90. Flips at 60, 90, 120 and never: leads 30, 0, -30, none."""
    early, at, late, never = [0, 0.4, 0, 0], [0, 0, 0.4, 0], [0, 0, 0, 0.4], [0] * 4
    runs = [run_of(FALLS, flips, "unanimous:61") for flips in (early, at, late, never)]
    runs += [run_of(HOLDS, early), run_of(HOLDS, never)]
    record = judge(runs, "flip_rate")
    assert record.leads == [30, 0, -30, -math.inf]
    assert (record.before, record.by, record.in_vain, record.calm) == (1, 2, 1, 2)
    assert judge(runs, "unanimous").before == 0  # 29 rollouts: no interval
    row = indicators_table(runs)["flip_rate"]
    assert row == {
        **{
            "before": "1 of 4",
            "by the loss": "2 of 4",
            "lead": "30 (30 to 30)",
            "in vain": "1 of 2",
        }
    }


def test_arms_in_which_a_guard_acts_are_left_out():
    assert indicators_table([run_of(FALLS, [0.4] * 4, arm="preset-hot-guard")]) == {}
    assert "preset-hot-guard" not in WATCHED
    assert "vote-hot" in WATCHED


def test_the_rule_counts_over_all_watched_arms():
    runs = {
        (arm, seed): run_of(FALLS if arm == "vote-hot" else HOLDS, [0, 0.4, 0, 0], arm=arm)
        for arm in WATCHED
        for seed in JUDGING
    }
    assert Warns("flip_rate", 6, 6, "before").judge(runs) == ("6 of 6 losses", "held")
    assert Warns("flip_rate", 0, 2, "in vain").judge(runs)[1] == "failed"
    runs["vote-hot", 40].warnings.clear()
    assert Warns("flip_rate", 6, 6, "before").judge(runs)[1] == "undecided"


def test_a_run_s_line(tmp_path):
    """Greedy completions do not count; of an evaluation made twice the later version's does."""
    for version, answers in (("version_0", "3 3"), ("version_1", "4 4")):
        folder = tmp_path / version / "evaluated"
        folder.mkdir(parents=True)
        rows = [{"index": 0, "answer": each} for each in answers.split()]
        greedy = {"index": 0, "answer": "9", "kind": "greedy"}
        lines = [json.dumps(row) for row in [*rows, greedy]]
        (folder / "val-rollout-000030.jsonl").write_text("\n".join(lines))
    first = tmp_path / "version_0" / "evaluated" / "val-rollout-000000.jsonl"
    first.write_text((first.parent / "val-rollout-000030.jsonl").read_text())
    event = {"source": "CollapseGuard", "kind": "alarm", "values": {"detector": "unanimous"}}
    notice = event | {"kind": "notice", "values": {"detector": "flips"}}
    events = [event | {"rollout": 7}, event | {"rollout": 9}, notice | {"rollout": 8}]
    events += [
        {**event, "source": "run", "rollout": 1},
        {**event, "kind": "recovery", "rollout": 2},
    ]
    (tmp_path / "version_0" / "events.jsonl").write_text(
        "".join(f"{json.dumps(each)}\n" for each in events)
    )
    (tmp_path / "finished.json").write_text(json.dumps({"settings": "abc"}))
    assert evaluations(tmp_path) == {0: [(0, "3")] * 2, 30: [(0, "4")] * 2}
    assert first_events(tmp_path) == {"unanimous": 7, "flips": 8}
    assert warning_row(tmp_path) == {
        "settings": "abc",
        "events": "flips:8 unanimous:7",
        "flip_rate": "30:1.0000",
        "majority_ratio": "0:1.0000 30:1.0000",
    }
