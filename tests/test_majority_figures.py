"""Flip rate and windowed majority ratio: by hand, restated, over ranks, and after a resume."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from callbacks import CollapseGuard, collapse_guard
from callbacks.majorities import WINDOW, majority_column, majority_figures
from harness.rollouts import handmade
from harness.runs import ONE, TINY, adding, callback_of, column, fit, run_with, whole_and_resumed
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.records import Rollout


def visit(table: PromptTable, answers: str, rows: list[int]) -> dict[str, float]:
    """One rollout of groups of four; a dash is no answer."""
    given = [None if text == "-" else text for text in answers.split()]
    rollout = handmade(answers.split(), 4)
    rollout = replace(rollout, prompts=replace(rollout.prompts, index=torch.tensor(rows)))
    figures = majority_figures(rollout, given, majority_column(table))
    table.gather()
    return figures


def test_the_worked_example():
    """Majorities 3, 3, 5, 3, 3: half of the four returns are flips; ratios 1/2 ... 1."""
    table, found = PromptTable(), []
    for answers in ("3 3 1 2", "3 3.0 1 -", "5 - - -", "3 3 3 5", "3 3 3 3"):
        found.append(visit(table, answers, [4]))
    flips = [each["vote/flip_rate"] for each in found]
    assert math.isnan(flips[0])
    assert flips[1:] == [0, 1, 1, 0]
    ratios = [each["vote/majority_ratio"] for each in found]
    assert ratios == pytest.approx([1 / 2, 1 / 2, 1.25 / 3, 2 / 4, 3 / 5])


def test_the_window_forgets_and_no_answer_is_a_majority():
    table = PromptTable()
    visit(table, "9 9 9 9", [0])
    for _ in range(WINDOW):
        last = visit(table, "- - - -", [0])
    assert last == {"vote/flip_rate": 0.0, "vote/majority_ratio": 0.0}
    assert visit(table, "1 2 3 4", [0])["vote/flip_rate"] == 1.0


def test_answers_are_equal_where_they_are_for_the_head_that_votes():
    """By strings, 1/2 is another answer than 0.5, so the majority is 3 and then 1/2."""
    for equivalence, flips, ratio in (("exact", 0.0, 3 / 5), ("string", 1.0, 2 / 5)):
        table = PromptTable()
        for answers in ("0.5 1/2 3 3 .5", "1/2 1/2 0.5 4 5"):
            given = [str(each) for each in answers.split()]
            rollout = handmade(given, 5)
            found = majority_figures(rollout, given, majority_column(table), equivalence)
            table.gather()
        assert found == {"vote/flip_rate": flips, "vote/majority_ratio": pytest.approx(ratio)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "vote",
    ["{head: {class_path: ClusterVote, init_args: {equivalence: string}}}", "{head: Random}"],
)
def test_the_guard_asks_the_head_that_votes(tmp_path, monkeypatch, vote):
    seen = []
    for name in ("symptoms", "majority_figures"):
        own = getattr(collapse_guard, name)
        monkeypatch.setattr(
            collapse_guard, name, lambda *given, own=own: (seen.append(given[-1]), own(*given))[1]
        )
    fit(tmp_path, *TINY, *ONE, f"--model.rewards={{it: {vote}}}", adding("CollapseGuard"))
    assert seen == ["string" if "string" in vote else "exact"] * 2


def test_problems_that_are_new_do_not_flip():
    """Of two problems that return one flips; the third is new."""
    table = PromptTable()
    visit(table, "1 1 2 2 7 7 7 8", [0, 1])
    found = visit(table, "2 2 2 1 7 8 7 8 5 5 5 5", [0, 1, 2])
    assert found["vote/flip_rate"] == 0.5
    assert found["vote/majority_ratio"] == pytest.approx((5 / 8 + 5 / 8 + 1) / 3)


def test_an_independent_restatement_over_many_visits():
    """Histories kept as lists; integers, of which no two share a majority in a group of five."""
    generator = torch.Generator().manual_seed(0)
    table, history = PromptTable(), {}
    for _ in range(30):
        rows = torch.randperm(9, generator=generator)[:4].tolist()
        drawn = torch.randint(1, 4, (4, 5), generator=generator).tolist()
        texts = [str(value) for group in drawn for value in group]
        rollout = handmade(texts, 5)
        rollout = replace(rollout, prompts=replace(rollout.prompts, index=torch.tensor(rows)))
        found = majority_figures(rollout, texts, majority_column(table))
        table.gather()
        flips, ratios = [], []
        for row, group in zip(rows, drawn, strict=True):
            counts = Counter(group)
            winner = min(counts, key=lambda value: (-counts[value], value))
            past = history.setdefault(row, [])
            if past:
                flips.append(past[-1][0] != winner)
            past.append((winner, counts[winner] / 5))
            last = [ratio for _, ratio in past[-5:]]
            ratios.append(sum(last) / len(last))
        expected = sum(flips) / len(flips) if flips else math.nan
        assert found["vote/flip_rate"] == pytest.approx(expected, nan_ok=True)
        assert found["vote/majority_ratio"] == pytest.approx(sum(ratios) / 4)


SMALL = ["--data.source.init_args.size=16", "--trainer.limit_train_batches=2"]  # two rollouts
TWICE = ["--trainer.max_epochs=2"]


@pytest.mark.full  # the run with a detector has them
def test_the_guard_logs_them_and_counts_nothing_for_problems_seen_once(tmp_path):
    fit(tmp_path, adding("CollapseGuard"), *SMALL, *TWICE)
    flips = column(tmp_path, "vote/flip_rate")
    assert [math.isnan(value) for value in flips] == [True, True, False, False]
    assert all(0 <= value <= 1 for value in column(tmp_path, "vote/majority_ratio"))


def test_a_detector_may_watch_them(tmp_path):
    own = {"ratio": {"metric": "vote/majority_ratio", "side": "above", "bound": 0.0, "window": 1}}
    with pytest.warns(UserWarning, match="ratio: vote/majority_ratio, .* is above 0"):
        run_with(tmp_path, "CollapseGuard", detectors=own)
    assert CollapseGuard().detectors["flips"].severity == "notice"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_resumed_run_remembers_its_majorities(tmp_path):
    """Two rollouts and two more, of the same problems, are four in one run."""
    whole, resumed = whole_and_resumed(tmp_path, "CollapseGuard", *SMALL)
    for name in ("vote/flip_rate", "vote/majority_ratio"):
        assert column(tmp_path / "second", name) == column(tmp_path / "whole", name)[2:]
    tables = [run.model.prompt_table.columns["majorities"].values for run in (whole, resumed)]
    assert tables[0] == tables[1]
    assert callback_of(whole, CollapseGuard).state_dict()


def test_a_batch_that_has_a_problem_twice_is_counted_and_written_once():
    table = PromptTable()
    rollout: Rollout = handmade(["1", "1", "2", "2"], 2)
    rollout = replace(rollout, prompts=replace(rollout.prompts, index=torch.tensor([3, 3])))
    majority_figures(rollout, ["1", "1", "2", "2"], majority_column(table))
    table.gather()
    assert list(table.columns["majorities"].values) == [3]
