"""A folder that becomes read-only before the export or report: by a mount, or by its bits for an
ordinary user.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from harness.files import ROOT
from harness.processes import environment
from harness.runs import BASE
from rlif_lightning.running.checkpoint_search import find_checkpoints

WAYS = {
    "a read-only mount": ["unshare", "--user", "--map-root-user", "--mount"],
    "no permission": ["unshare", "--user", "--map-user=1000", "--map-group=1000"],
}


class ReadOnlyAtTheEnd(Callback):
    """From the end of training on, nothing can be made in the run's folder."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        if not os.geteuid():
            # Files that are open stay open; what is looked up from here on is on the new mount.
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            return
        for place, _, _ in os.walk(folder):
            os.chmod(place, 0o555)


@pytest.mark.full  # test_full_disk.py has an export and a report that find no room
@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_written_is_named_and_what_is_saved_is_whole(tmp_path, way):
    """An export that is missing fails the run; a report that is missing is told."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*WAYS[way], "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine gives no namespaces")
    folder = tmp_path / "runs"
    command = [*WAYS[way], sys.executable, "-m", "rlif_lightning", "fit", *BASE]
    command += [
        f"--trainer.default_root_dir={folder}",
        "--trainer.callbacks+=test_read_only.ReadOnlyAtTheEnd",
    ]
    command += ["--trainer.callbacks+=HFExporter", "--trainer.callbacks+=RunReport"]
    env = environment()
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False
    )
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        place.chmod(stat.S_IRWXU)
    told = "Read-only file system" if way == "a read-only mount" else "Permission denied"
    assert [path.name for path in find_checkpoints(folder)] == ["rollout=000002.ckpt"]
    assert not list(folder.rglob("*unfinished*"))
    assert done.returncode == 1, done.stderr[-2000:]
    for said in (
        f"HFExporter could not write {folder / 'version_0' / 'export' / 'last'}: ",
        "warning: the report of ",
    ):
        assert re.search(f"{re.escape(said)}.*{told}", done.stderr), done.stderr[-2000:]
