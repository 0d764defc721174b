"""The comparison of multi-turn rollouts refuses a missing side before it measures another one."""

from __future__ import annotations

import sys

import pytest

from benchmarks import multi_turn


def test_a_missing_python_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["multi_turn", "--trl-python=/no/such/python"])
    with pytest.raises(SystemExit) as ended:
        multi_turn.main()
    assert ended.value.code == 2
    assert "--trl-python=/no/such/python is no program" in capsys.readouterr().err
