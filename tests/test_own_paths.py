"""What settings name by an import path is found from the current folder."""

from __future__ import annotations

import sys

import pytest

from rlif_lightning.__main__ import command
from rlif_lightning.setting_types import imported


def test_the_script_rlif_sees_the_current_folder_behind_packages(tmp_path, monkeypatch):
    """``sys.path`` of an installed script begins at its own folder."""
    (tmp_path / "one_s_own_file.py").write_text("thing = 7\n")
    (tmp_path / "torch.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(sys, "argv", ["rlif", "status", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "one_s_own_file", raising=False)
    with pytest.raises(SystemExit):
        command()
    assert imported("one_s_own_file.thing", "data.environment.make") == 7
    assert sys.path[-1] == ""
