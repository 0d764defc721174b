"""A file is replaced as a whole: what a reader sees before, during and after, and what a failure
leaves.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.files import EVERYTHING, ROOT
from rlif_lightning.whole_files import replaced

# Folders cannot be replaced by one renaming. The others rename a folder away, or bring an earlier
# one back.
RENAMES = {
    "rlif_lightning/whole_files.py": 1,
    "rlif_lightning/running/checkpoint_names.py": 1,  # a folder, before it is removed
    "rlif_lightning/running/checkpoint_files.py": 1,  # a folder of shards
    "rlif_lightning/running/leftovers.py": 1,  # an export that a killed process had moved away
    "rlif_lightning/model/export.py": 3,  # a folder: the old one away, the new one in its place
}


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", [None, ".other"])
def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, name, durable):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replaced(path, None if name is None else tmp_path / name, durable) as unfinished:
        assert unfinished == tmp_path / (name or "table.csv.unfinished")
        unfinished.write_text("ne")
        assert path.read_text() == "old"
        unfinished.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path, error: BaseException, begun: bool) -> None:
    with replaced(path) as unfinished:
        if begun:
            unfinished.write_text("ne")
        raise error


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_a_failure_leaves_the_old_file_alone(tmp_path, error, begun):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error, match="full"):
        write_half(path, error("full"), begun)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_never_written_is_an_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"table.csv.unfinished"),
        replaced(tmp_path / "table.csv"),
    ):
        pass


def test_a_killed_process_leaves_the_half_written_file_under_its_other_name(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from rlif_lightning.whole_files import"
        " replaced\n"
        "with replaced(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run.json")], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["run.json.unfinished"]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path, monkeypatch
):
    path, seen, force = tmp_path / "model.ckpt", [], os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, path.exists()))
        force(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replaced(path, durable=True) as unfinished:
        unfinished.touch()
    assert seen == [("model.ckpt.unfinished", False), (tmp_path.name, True)]
    seen.clear()
    with replaced(path) as unfinished:
        unfinished.touch()
    assert seen == []


def renames(path: Path) -> int:
    """How often a file of ours renames one: ``os.replace``, ``os.rename``, or those of a path."""
    text = path.read_text()
    if ".replace(" not in text and ".rename(" not in text:
        return 0
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    named = [
        (node.func, len(node.args))
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("replace", "rename")
    ]
    return sum(
        ast.unparse(function) in ("os.replace", "os.rename")
        or (
            function.attr == "replace"
            and given == 1
            and ast.unparse(function.value) in ("unfinished", "path")
        )
        for function, given in named
    )


def test_files_are_replaced_in_one_place():
    found = {str(path.relative_to(ROOT)): renames(path) for path in EVERYTHING}
    assert {name: count for name, count in found.items() if count} == RENAMES
