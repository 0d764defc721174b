"""The benchmark of multi-turn rollouts: both of our sides do the planned work, and the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import multi_turn
from benchmarks.multi_turn import WORK, row_of
from harness.files import ROOT

SMALL = ["--hidden=32", "--layers=1", "--vocab=64", "--problems=2", "--group-size=2", "--turns=3"]


def side(*flags: str) -> dict:
    command = [sys.executable, "benchmarks/multi_turn_ours.py", *SMALL, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full  # the table: below; its engine: test_episodes.py
def test_sides_do_the_same_planned_work():
    small = ["--turn-tokens=5", "--observation=4"]
    kept, again = side(*small), side(*small, "--again")
    # 4 episodes of 3 turns of 5 tokens; two observations of 4 words and 5 words of the chat.
    assert [kept[name] for name in WORK] == [4 * 3, 4 * 3 * 5, 4 * 2 * 9]
    assert [again[name] for name in WORK] == [kept[name] for name in WORK]


def test_a_row_of_the_table_is_of_medians():
    def runs(seconds, peak):
        given = {"sampled": 60, "observed": 72, "peak_mib": peak, "above_start_mib": peak / 2}
        return [given | {"cpu_seconds": each} for each in seconds]

    sides = {
        "ours": runs((1, 9, 2), 100),
        "again": runs((3,) * 3, 150),
        "trl": runs((8, 7, 8), 200),
    }
    row = row_of(sides)
    assert (row["ours, CPU s"], row["TRL, CPU s"], row["CPU share"]) == ("2.00", "8.00", "0.25")
    assert (row["again, MiB"], row["peak share"], row["above start"]) == ("150", "0.50", "0.50")


def test_a_missing_python_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["multi_turn", "--trl-python=/no/such/python"])
    with pytest.raises(SystemExit) as ended:
        multi_turn.main()
    assert ended.value.code == 2
    assert "--trl-python=/no/such/python is no program" in capsys.readouterr().err
