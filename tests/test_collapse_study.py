"""The study's figures, verdicts and files on hand-made curves, and a run through its command."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import collapse_study
from benchmarks.results import read_results, write_results
from benchmarks.study_arms import ARMS, CONFIGS, CURVE, FEW, JUDGING, PLAN, Arm
from benchmarks.study_figures import (
    at_summed_rate,
    end,
    first_loss,
    has_fallen,
    interval,
    peak,
    ranks,
    spearman,
    spread,
)
from benchmarks.study_predictions import GROUPS, verdicts
from benchmarks.study_report import arm_line, tables, write_report
from benchmarks.study_rows import (
    FIGURES,
    Run,
    curve_rows,
    problem_counts,
    rate_steps,
    read_or_empty,
    read_runs,
    record,
    run_row,
    summed_rate,
)
from benchmarks.study_rules import Alarms, Falls, Gap, Ranks, Spread
from harness.forked import run_module

FALLING = [0.5, 0.8, 0.9, 0.7, 0.4, 0.1, 0.1]
STEADY = [0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]
FACTS = {"ended by": "plan", "first alarm": "", "settings": ""}


def run_of(accuracy, arm="vote-hot", seed=40, alarm="", every=50):
    """A run with an evaluation every 50 rollouts, at the full rate."""
    rollouts = [every * i for i in range(len(accuracy))]
    curves = {name: [0.5] * len(accuracy) for name in FIGURES} | {"accuracy": list(accuracy)}
    counts = {"kept": "90", "sharpened": "10", "learnt": "10", "degraded": "8", "wrong": "10"}
    facts = FACTS | {"first alarm": alarm} | counts
    return Run(arm, seed, rollouts, [float(at) for at in rollouts], curves, facts)


def test_peak_and_end_are_means_of_three():
    """Means of three of FALLING: .7333, .8, .6667, .4, .2."""
    run = run_of(FALLING)
    assert peak(run, 300) == pytest.approx(0.8)
    assert end(run, 300) == pytest.approx(0.2)
    assert end(run, 150) == pytest.approx(0.8)  # 0.8, 0.9, 0.7
    assert has_fallen(run, 300)
    assert not has_fallen(run, 150)
    assert not has_fallen(run_of(STEADY), 300)
    assert has_fallen(run_of([0.5, 0.3, 0.3, 0.3]), 300)  # below its start: no peak is needed


def test_the_first_loss_is_of_a_quarter_of_the_best_before():
    assert first_loss(run_of(FALLING), 300) == 200  # 0.4 < 0.75 * 0.9; 0.7 is not
    assert first_loss(run_of(FALLING), 150) is None
    assert first_loss(run_of([0.1, 0.9, 0.675]), 300) is None  # three quarters is not below
    assert first_loss(run_of([0.9, 0.6, 0.9]), 300) == 50  # one that heals is a loss as well


def test_summed_rates_are_sums_over_rollouts():
    """12 rollouts at 1, 8 at a half, 10 at a quarter: 12 + 4 + 2.5."""
    steps = [(0, 1.0), (12, 0.5), (20, 0.25)]
    assert summed_rate(steps, 30) == 18.5
    assert summed_rate(steps, 12) == 12.0
    assert summed_rate(steps, 0) == 0.0
    factors = [next(f for b, f in reversed(steps) if b <= rollout) for rollout in range(37)]
    assert summed_rate(steps, 37) == sum(factors)


def test_accuracy_at_a_summed_rate_lies_on_the_line_between_evaluations():
    run = replace(run_of([0.5, 0.7, 0.9]), rates=[0.0, 12.5, 25.0])
    assert at_summed_rate(run, 20.0) == pytest.approx(0.7 + 0.2 * 7.5 / 12.5)
    assert at_summed_rate(run, 25.0) == pytest.approx(0.9)
    assert math.isnan(at_summed_rate(run, 25.1))


def test_intervals_are_wider_than_a_plain_bootstrap_and_near_student_s():
    """Six values: mean 3.5, standard error .764, Student's interval 3.5 -+ 1.96."""
    low, high = interval([1, 2, 3, 4, 5, 6])
    assert low == pytest.approx(3.5 - 1.96, abs=0.25)
    assert high == pytest.approx(3.5 + 1.96, abs=0.25)
    assert low < 3.5 - 1.35 < 3.5 + 1.35 < high  # what 1.96 errors of a plain bootstrap would be
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval([2.0]) == (-math.inf, math.inf)
    assert spread([1, 2, 3]) == 1.0


def runs_of(*curves, arm="vote-hot", alarm=""):
    return {
        (arm, seed): run_of(curve, arm, seed, alarm)
        for seed, curve in zip(JUDGING, curves, strict=False)
    }


def test_falls_are_counted_in_a_range():
    runs = runs_of(FALLING, FALLING, FALLING, FALLING, FALLING, STEADY)
    assert Falls("vote-hot", 5, 6).judge(runs) == ("5 of 6 fell", "held")
    assert Falls("vote-hot", 0, 1).judge(runs) == ("5 of 6 fell", "failed")
    assert Falls("vote-hot", 0, 1, rollouts=150).judge(runs) == ("0 of 6 fell", "held")


def test_gaps_hold_fail_or_stay_open_by_their_interval():
    higher = [[*STEADY[:4], *[0.9 + 0.01 * (i % 2)] * 3] for i in range(6)]
    runs = runs_of(*[STEADY] * 6) | runs_of(*higher, arm="gold-hot")
    for low, high, verdict in ((-3, 3, "held"), (2, 9, "failed"), (0.4, 3, "undecided")):
        number, found = Gap("gold-hot", "vote-hot", low, high).judge(runs)
        assert (number.split(" (")[0], found) == ("+0.5", verdict)
    number, _ = Gap("gold-hot", "vote-hot", -3, 3, summed=75).judge(runs)
    assert number == "+0.0 (+0.0 to +0.0)"
    assert Gap("gold-hot", "vote-hot", -3, 3, summed=900).judge(runs)[1] == "undecided"


def test_alarms_are_counted_before_the_loss():
    runs = runs_of(*[FALLING] * 5, STEADY, alarm="30")
    assert Alarms("vote-hot", 6, "any").judge(runs) == ("6 of 6 raised an alarm", "held")
    number, verdict = Alarms("vote-hot", 6, "before loss").judge(runs)
    assert number == "5 of 5 losses had one before; lead +170, +170, +170, +170, +170"
    assert verdict == "held"
    late = runs_of(*[FALLING] * 6, alarm="200")
    assert Alarms("vote-hot", 6, "before loss").judge(late)[1] == "failed"
    assert Alarms("vote-hot", 1, "any", rollouts=150).judge(late)[1] == "failed"


def test_the_spread_of_peaks():
    runs = runs_of(*[STEADY] * 3, *[[0.5, 0.8, 0.8, 0.8]] * 3)  # peaks 90 and 80: sd 5.477
    assert Spread("vote-hot", 2.2).judge(runs) == ("5.5 points", "held")
    assert Spread("vote-hot", 6).judge(runs)[1] == "failed"


def test_ranks_by_hand():
    """Ranks 1.5, 4, 1.5, 3 and 1, 3, 2, 4: correlation 3.5 / sqrt(4.5 * 5) = 0.738."""
    x, y = [0.2, 0.9, 0.2, 0.5], [1, 3, 2, 4]
    assert ranks(x) == [1.5, 4, 1.5, 3]
    assert spearman(x, y) == pytest.approx(3.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_starts_rank_ends_over_the_curve():
    """Of 18 points the first two are exchanged: 1 - 6 * 2 / (18 * (18**2 - 1)) = 0.99794."""
    runs = {}
    for place, arm in enumerate(CURVE):
        final = 0.05 * (1 - place if place < 2 else place)
        for seed in FEW:
            runs[arm, seed] = run_of([0.1, *[final] * 6], arm, seed)
            runs[arm, seed].curves["majority"][0] = 0.01 * place + 0.001 * (seed - 41)
    assert Ranks("curve", 0.7, seeds=FEW).judge(runs) == ("1.00 over 18 points", "held")
    assert Ranks("curve", 0.998, seeds=FEW).judge(runs)[1] == "failed"
    made = tables(list(runs.values()))
    assert made["study_curve"][1].keys() == set(CURVE)
    assert "study" not in made
    row = made["study_curve"][1][CURVE[2]]
    assert (row["start"], row["majority at the start"], row["fell"]) == ("10.0", "2.0", "0 of 3")


def test_a_prediction_is_judged_when_all_its_runs_are_there():
    runs = list(runs_of(*[FALLING] * 5).values())
    row = verdicts(runs)["C1"]
    assert (row["found"], row["verdict"]) == ("5 of 6 runs", "not run yet")
    row = verdicts([*runs, run_of(FALLING, seed=45)])["C1"]
    assert (row["found"], row["verdict"]) == ("6 of 6 fell", "held")
    short = run_of(FALLING[:5], seed=45)
    assert verdicts([*runs, short])["C1"]["verdict"] == "not run yet"
    ended = replace(short, facts=short.facts | {"ended by": "guard"})
    assert verdicts([*runs, ended])["C1"]["verdict"] == "held"
    longer = verdicts([run_of(STEADY, "vote-quarter", seed) for seed in JUDGING])
    assert longer["G11"]["verdict"] == "not run yet"  # it asks for 1,200 rollouts


def test_every_prediction_and_block_names_an_arm_that_exists():
    named = {arm for block in PLAN for arm in block.arms}
    assert named <= ARMS.keys()
    for group in GROUPS.values():
        for _, rule in group():
            assert set(rule.arms) <= named, rule  # what is predicted is in the plan
    for arm in ARMS.values():
        assert all((CONFIGS / f"{overlay}.yaml").exists() for overlay in arm.overlays)
    overlays = {name for arm in ARMS.values() for name in arm.overlays}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == overlays | {"base"}
    tuning = {*range(6), 31, 32}  # on which preset, guard and rates were chosen
    assert not {seed for block in PLAN for seed in block.seeds} & tuning


def test_an_arm_s_digest_changes_with_what_its_runs_depend_on():
    digests = {arm.digest for arm in ARMS.values()}
    assert len(digests) == len(ARMS)
    assert Arm(("vote",)).digest == Arm(("vote",)).digest == ARMS["vote-hot"].digest
    assert Arm(("vote",), rate=1e-4).digest != ARMS["vote-hot"].digest


def version(folder, begin, rates, evaluations, events=()):
    """One version of a run: its rates from a rollout on, and its evaluations."""
    folder.mkdir(parents=True)
    lines = [f"{begin + i},{rate}" for i, rate in enumerate(rates)]
    (folder / "metrics.csv").write_text("\n".join(["step,policy/learning_rate", *lines, ""]))
    figures = {"maj@8": 0.75, "pass@8": 1, "agreement": 0.6, "entropy": 0.2, "length": 12}
    values = {name: {"value": value} for name, value in figures.items()}
    entries = [
        {"rollouts": at, "figures": values | {"accuracy": {"value": accuracy}}}
        for at, accuracy in evaluations.items()
    ]
    (folder / "evaluation.json").write_text(json.dumps(entries))
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def completions(folder, rollouts, answers):
    """The completions of an evaluation: problem -> [answer, right] pairs."""
    (folder / "evaluated").mkdir(exist_ok=True)
    rows = [
        {"index": index, "answer": answer, "correct": right}
        for index, own in answers.items()
        for answer, right in own
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "evaluated" / f"val-rollout-{rollouts:06d}.jsonl").write_text(text)


@pytest.fixture
def folder(tmp_path):
    """A run of five rollouts that was resumed after the third, halved after the second."""
    run = tmp_path / "run"
    values = {"detector": "unanimous"}
    event = {"source": "CollapseGuard", "kind": "alarm", "rollout": 2, "values": values}
    others = [{**event, "kind": "adjust"}, {**event, "source": "run"}, {**event, "kind": "notice"}]
    version(run / "version_0", 0, [4e-4, 4e-4, 2e-4], {0: 0.5, 3: 0.7}, [event, *others])
    version(run / "version_1", 3, [2e-4, 2e-4], {5: 0.9}, [{**event, "rollout": 4}])
    right, wrong = ("3", True), ("4", False)
    start = {0: [right, right, wrong], 1: [wrong, right, wrong], 2: [right], 3: [wrong]}
    final = {0: [right], 1: [right, right, wrong], 2: [wrong, wrong, right], 3: [(None, False)]}
    completions(run / "version_0", 0, start)
    completions(run / "version_1", 5, final)
    facts = {"seconds": 12.4, "settings": ARMS["vote-quarter"].digest, "commit": "abc"}
    (run / "finished.json").write_text(json.dumps(facts))
    return run


def marked(folder, **changes):
    """Change the mark of a finished run."""
    mark = folder / "finished.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | changes))


def test_a_run_s_rows(folder):
    """Rates 1, 1, .5, .5, .5 of the arm's own rate, which is a quarter of 5e-4."""
    assert rate_steps(folder) == [(0, 1.0), (2, 0.5)]
    rows = curve_rows(folder, "vote-quarter", 40)
    assert list(rows) == ["40/0", "40/3", "40/5"]
    assert [row["summed rate"] for row in rows.values()] == ["0", "0.625", "0.875"]
    assert [row["accuracy"] for row in rows.values()] == ["0.5000", "0.7000", "0.9000"]
    row = run_row(folder, "vote-quarter")
    assert row["rates"] == "0:1 2:0.5"
    assert (row["rollouts"], row["ended by"], row["seconds"]) == ("5", "plan", "12")
    assert (row["first alarm"], row["alarms"], row["actions"]) == ("2", "2", "1")
    assert problem_counts(folder) == {
        **{"kept": 0, "sharpened": 1, "learnt": 1, "degraded": 1, "wrong": 1}
    }


def test_one_update_a_rollout_sums_a_quarter(folder):
    rows = curve_rows(folder, "paper-hot-one_update", 40)
    assert [row["summed rate"] for row in rows.values()] == ["0", "0.625", "0.875"]


def test_finished_runs_are_kept_read_and_refused_after_a_change(folder, tmp_path):
    results = tmp_path / "results"
    for seed in (41, 40, 40):  # the last again: no line twice
        record(folder, "vote-quarter", seed, results)
    table = read_results(results / "study" / "runs.csv")
    assert list(table) == ["vote-quarter/40", "vote-quarter/41"]
    runs = read_runs(results)
    assert [(run.arm, run.seed, run.rollouts) for run in runs] == [
        ("vote-quarter", 40, [0, 3, 5]),
        ("vote-quarter", 41, [0, 3, 5]),
    ]
    assert runs[0].rates == [0.0, 0.625, 0.875]
    job = collapse_study.Job("vote-quarter", 40, 5, folder, results)
    assert job.is_finished
    assert not replace(job, rollouts=6).is_finished
    marked(folder, settings="former")
    record(folder, "vote-quarter", 40, results)
    assert not job.is_finished
    assert [run.seed for run in read_runs(results)] == [41]
    assert not job.collect()


def test_finished_runs_are_collected_from_their_folders(folder, tmp_path, capsys):
    (tmp_path / "runs" / "vote-quarter").mkdir(parents=True)
    folder.rename(tmp_path / "runs" / "vote-quarter" / "seed_40")
    out = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    collapse_study.main(["--collect", *out])
    assert "1 runs are collected" in capsys.readouterr().out
    (run,) = read_runs(tmp_path)
    assert (run.facts["seconds"], run.facts["commit"]) == ("12", "abc")


def test_a_run_that_its_guard_ended_is_finished(folder, tmp_path):
    stop = {"source": "CollapseGuard", "kind": "stop", "rollout": 5}
    with (folder / "version_1" / "events.jsonl").open("a") as events:
        events.write(json.dumps(stop) + "\n")
    record(folder, "vote-quarter", 40, tmp_path)
    assert collapse_study.Job("vote-quarter", 40, 300, tmp_path / "x", tmp_path).is_finished


def test_a_yoked_run_replays_the_next_seed_s_rates(folder, tmp_path):
    job = collapse_study.Job("preset-hot-yoked", 45, 300, tmp_path / "x", tmp_path)
    assert job.factors() is None  # the guarded run of seed 40 has not been made
    marked(folder, settings=ARMS["preset-hot-guard"].digest)
    record(folder, "preset-hot-guard", 40, tmp_path)
    assert job.factors() == [[2, 0.5]]
    assert "LearningRateFactors" in " ".join(job.command([[2, 0.5]]))
    assert replace(job, seed=40).factors() is None  # its partner is 41


def test_tables_and_the_page(tmp_path):
    runs = [run_of(FALLING, seed=seed, alarm="30") for seed in JUDGING]
    line = arm_line(runs, 300)
    assert (line["end"], line["fell"]) == ("20.0 (20.0 to 20.0)", "6 of 6")
    assert (line["first loss"], line["summed rate"]) == ("200, 200, 200, 200, 200, 200", "300")
    made = tables(runs)
    assert made["study"][1].keys() == {"vote-hot"}
    assert "study_long" not in made
    other = tables([*runs, run_of(FALLING, arm="vote-hot-words", seed=40)])
    assert other["study"][1].keys() == {"vote-hot"}  # another model's runs have their own table
    assert other["study_family"][1].keys() == {"vote-hot-words"}
    page = tmp_path / "page.md"
    mark = "<!-- result: study.vote-hot.end -->9.9<!-- /result -->"
    other = "<!-- result: gpu.x.y -->1<!-- /result -->\n<!-- results: gpu -->\n| a |\n| --- |\n"
    table = "<!-- results: study -->\n| arm | fell |\n| --- | --- |\n| `old` | 1 |\n"
    page.write_text(f"a {mark} b\n\n{table}\n{other}")
    for run in runs:
        lines = {f"{run.seed}/{at}": line_of(run, i) for i, at in enumerate(run.rollouts)}
        path = tmp_path / "study" / "vote-hot.csv"
        write_results(path, {"command": "x"}, read_or_empty(path) | lines, key="at")
    digest = {"settings": ARMS["vote-hot"].digest}
    facts = {f"vote-hot/{run.seed}": run.facts | digest for run in runs}
    write_results(tmp_path / "study" / "runs.csv", {"command": "x"}, facts)
    write_report(tmp_path, [page])
    assert page.read_text() == (
        f"a {mark.replace('9.9', '20.0')} b\n\n"
        f"{table.replace('| `old` | 1 |', '| `vote-hot` | 6 of 6 |')}\n{other}"
    )
    assert read_results(tmp_path / "study_verdicts.csv")["C1"]["verdict"] == "held"
    assert not (tmp_path / "study_long.csv").exists()  # nothing to show


def line_of(run: Run, place: int) -> dict[str, str]:
    figures = {name: f"{values[place]:.4f}" for name, values in run.curves.items()}
    return {"summed rate": f"{run.rates[place]:g}", **figures}


def test_longer_runs_are_counted_with_those_that_their_guard_ended_before():
    """The verdict counts both; the table left out what ended before rollout 300."""
    arm = "preset-hot-guard"
    ended = [run_of(STEADY[:4], arm, 40), run_of(STEADY, arm, 41, every=150)]
    ended = [replace(run, facts=run.facts | {"ended by": "guard"}) for run in ended]
    made = tables([*ended, run_of(STEADY, "vote-hot", 40)])
    assert made["study_long"][1][arm]["fell"] == "0 of 2"
    assert [*made["study_long"][1]] == [arm]


def test_a_list_of_what_is_due(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--results", str(tmp_path)]
    collapse_study.main(["--list", "--arms", "vote-hot", *out])
    expected = "vote-hot 300: finished none; due 40 41 42 43 44 45\n"
    assert capsys.readouterr().out == expected


def forked(command, **given):
    """As ``subprocess.run``, with the imports done where it is a run."""
    if command[1] != "-m":
        return subprocess.run(command, **given)
    done = run_module(command[2], command[3:], given["env"])
    given["stdout"].write(done.stdout + done.stderr)
    return done


@pytest.mark.full  # what is finished, kept and due: above
def test_the_command_runs_skips_and_makes_longer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(collapse_study, "subprocess", SimpleNamespace(run=forked))
    out = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    arguments = ["--arms", "vote-quarter", "--seeds", "7", *out]
    collapse_study.main([*arguments, "--rollouts", "1"])
    assert "0 of 1 runs are finished; 1 to go" in capsys.readouterr().out
    collapse_study.main([*arguments, "--rollouts", "1"])
    assert "1 of 1 runs are finished; 0 to go" in capsys.readouterr().out
    collapse_study.main([*arguments, "--rollouts", "2"])
    row = read_results(tmp_path / "study" / "runs.csv")["vote-quarter/7"]
    assert (row["rollouts"], row["rates"]) == ("2", "0:1")
    (run,) = read_runs(tmp_path)
    assert run.rollouts == [0, 1, 2]  # the longer run is measured at its own end too
    broken = tmp_path / "runs" / "vote-quarter" / "seed_8"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("a file in the way")
    with pytest.raises(OSError, match="seed_8"):
        collapse_study.main(["--arms", "vote-quarter", "--seeds", "8", "--rollouts", "1", *out])
