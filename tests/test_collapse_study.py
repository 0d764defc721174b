"""The study's figures on hand-made curves, and two short runs through its own command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from benchmarks import collapse_study
from benchmarks.collapse_plots import common
from benchmarks.collapse_summary import (
    CURVES,
    Run,
    by_arm,
    first_below,
    measure,
    outcomes,
    read_run,
    settled,
    table_of,
    warnings_in_time,
)
from harness.files import ROOT

ROLLOUTS = [0, 10, 20, 30, 40, 50]
FALLING = [0.4, 0.8, 0.7, 0.55, 0.39, 0.2]


def run_of(
    accuracy: list[float], alarms: list[int] | None = None, arm: str = "a", seed: int = 0
) -> Run:
    curves = {name: [0.5] * len(accuracy) for name in CURVES} | {"accuracy": accuracy}
    return Run(arm, seed, ROLLOUTS[: len(accuracy)], curves, alarms or [])


def test_first_below_counts_after_the_peak_only():
    assert first_below(ROLLOUTS, FALLING, 0.75) == 30  # 0.55 < 0.6
    assert first_below(ROLLOUTS, FALLING, 0.5) == 40  # 0.39 < 0.4
    assert (
        first_below(ROLLOUTS, [0.1, 0.2, 0.8, 0.8, 0.7, 0.7], 0.75) is None
    )  # low before the peak is no collapse
    assert (
        first_below(ROLLOUTS, [0.8, 0.4, 0.8, 0.8, 0.8, 0.8], 0.75) == 10
    )  # the first of two equal peaks
    assert first_below([0, 10], [0.8, 0.4], 0.5) is None  # half is not below half


@pytest.mark.parametrize(
    ("alarms", "lead", "missed"),
    [([12, 40], 18, False), ([30], 0, True), ([35], -5, True), ([], None, True)],
)
def test_the_guard_of_a_collapsing_run(alarms, lead, missed):
    figures = measure(run_of(FALLING, alarms))
    assert (figures["quarter_lost"], figures["collapse"]) == (30, 40)
    assert (figures["lead"], figures["missed"], figures["false_alarms"]) == (lead, missed, 0)
    assert (figures["start"], figures["peak"]) == (0.4, 0.8)
    assert figures["retention"] == pytest.approx(0.25)


def test_alarms_of_a_healthy_run_are_false():
    figures = measure(run_of([0.4, 0.6, 0.8, 0.79], [15, 22]))
    assert (
        figures["quarter_lost"],
        figures["lead"],
        figures["missed"],
        figures["false_alarms"],
    ) == (
        None,
        None,
        False,
        2,
    )
    assert math.isnan(measure(run_of([0.0, 0.0]))["retention"])
    saved = replace(run_of([0.4, 0.6, 0.8, 0.79], [15]), actions=[15])
    assert (measure(saved)["false_alarms"], measure(saved)["actions"]) == (0, 1)


def test_arms_are_means_with_their_range():
    measured = [
        measure(run)
        for run in (
            run_of(FALLING, [12], seed=0),
            run_of([0.4, 0.6, 0.6, 0.6, 0.6, 0.6], [], seed=1),
            run_of([0.4, 0.6, 0.6, 0.6, 0.6, 0.6], [40], seed=2),
            run_of([0.4, 0.5], arm="b"),
        )
    ]
    arms = by_arm(measured)
    assert list(arms) == ["a", "b"]
    assert arms["a"]["peak"] == (pytest.approx(2 / 3), 0.6, 0.8)
    assert arms["a"]["retention"] == (pytest.approx(0.75), pytest.approx(0.25), 1.0)
    assert (
        arms["a"]["collapses"],
        arms["a"]["leads"],
        arms["a"]["missed"],
        arms["a"]["false_alarms"],
    ) == (
        [40],
        [18],
        0,
        1,
    )
    first, second = table_of(outcomes(arms)).splitlines()[2:]
    assert first.startswith(
        "| `a` | 3 | 66.7 (60.0 to 80.0) | 46.7 (20.0 to 60.0) | 75 (25 to 100) | "
    )
    assert "| 1 of 3 (40) |" in first
    assert "| 0 of 1 |" in second
    first, second = table_of(warnings_in_time(arms)).splitlines()[2:]
    assert first == "| `a` | 3 | 1 | +18 | 0 | 1 | 0 | never | - |"
    assert second == "| `b` | 1 | 0 | - | 0 | 0 | 0 | never | - |"


def test_what_settles_is_a_mean_of_three():
    """Means of three of FALLING: .633, .683, .547, .38; the last over the largest."""
    assert settled(FALLING) == pytest.approx((0.55 + 0.39 + 0.2) / (0.8 + 0.7 + 0.55))
    assert settled([0.4, 0.5]) == 1.0
    assert math.isnan(settled([0.0, 0.0, 0.0]))


def test_what_a_stopping_rule_would_have_kept():
    """It would stop after rollout 34: the evaluation at 30 has 0.55 of 0.8."""
    stopped = measure(replace(run_of(FALLING), stop=34))
    assert (stopped["stop"], stopped["kept_at_stop"]) == (34, pytest.approx(0.55 / 0.8))
    assert measure(run_of(FALLING))["kept_at_stop"] is None
    assert table_of(warnings_in_time(by_arm([stopped]))).splitlines()[2].endswith("| 34 | 69 |")


def test_runs_are_read_from_their_tables(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,policy/entropy,vote/largest_cluster,vote/distinct_answers,val/accuracy,val/pass@8,val/agreement,val/entropy,"
        "val/length\n"
        "0,,,,0.4,0.9,0.5,0.3,12\n3,0.3,0.5,9,,,,,\n7,0.2,0.5,9,,,,,\n7,,,,0.6,0.95,0.6,0.2,13\n11,0.1,0.5,9,,,,,\n"
        "12,,,,0.5,0.9,0.7,0.1,14\n12,,,,0.55,0.9,0.7,0.1,14\n"
    )
    event = {
        "step": 8,
        "rollout": 2,
        "source": "CollapseGuard",
        "kind": "alarm",
        "message": "x",
        "values": {},
    }
    others = [
        {**event, "kind": "notice"},
        {**event, "source": "EntropyMonitor"},
        {**event, "kind": "rollback", "rollout": 3},
        {**event, "kind": "adjust", "rollout": 4},
        {**event, "kind": "stop", "rollout": 5},
    ]
    (tmp_path / "events.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [event, *others])
    )
    run = read_run(tmp_path, "a", 1)
    assert run.rollouts == [0, 2, 3]
    assert run.curves["accuracy"] == [0.4, 0.6, 0.55]  # the last one where there are two
    assert (run.alarms, run.actions, run.stop) == ([2], [3, 4], None)


def test_curves_are_compared_where_all_seeds_have_them():
    rollouts, values = common(
        "a", [run_of(FALLING), run_of([0.1, 0.2], seed=1), run_of([0.9], arm="b")], "accuracy"
    )
    assert rollouts == [0, 10]
    assert values.tolist() == [[0.4, 0.8], [0.1, 0.2]]


@pytest.mark.slow
def test_the_command_runs_skips_and_runs_again(tmp_path, capsys):
    short = [
        "--trainer.limit_train_batches=2",
        "--trainer.val_check_interval=1",
        "--data.prompts_per_rollout=4",
        "--data.source.init_args.validation_size=8",
        "--data.validation_prompts_per_batch=8",
    ]
    arguments = ["--arms", "certainty", "gold", "--seeds", "0", "--out", str(tmp_path)]
    collapse_study.main([*arguments, "--", *short])
    assert "0 of 2 runs are finished; 2 to go" in capsys.readouterr().out
    run = read_run(tmp_path / "gold" / "seed_0" / "version_0", "gold", 0)
    assert run.rollouts == [0, 1, 2]
    assert len(json.loads((tmp_path / "summary.json").read_text())["runs"]) == 2
    assert (tmp_path / "table.md").read_text().count("\n") == 9
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    assert (tmp_path / "figures.png").stat().st_size > 5000
    collapse_study.main([*arguments, "--", *short])
    assert "2 of 2 runs are finished; 0 to go" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no finished run"):  # other settings are other runs
        collapse_study.main([*arguments, "--summarise"])
    with pytest.raises(SystemExit, match=r"gold, seed 0: exit code \d, see .*log\.txt"):
        collapse_study.main(
            [
                "--arms",
                "certainty",
                "gold",
                "--seeds",
                "0",
                "--out",
                str(tmp_path),
                "--",
                *short[:-1],
                "--data.validation_prompts_per_batch=8",
                "--data.answer_column=nothing",
            ]
        )


def test_every_arm_has_a_config():
    assert {path.stem for path in (ROOT / "configs" / "study").glob("*.yaml")} >= {
        "base",
        "paper",
        "gold",
        "random",
    }
