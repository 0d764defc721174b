"""Checkpoints as files: whole or not there, examined before they are trusted, found again; no code runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from test_run import fit

from rlif_lightning.running import checkpoint_files
from rlif_lightning.running.checkpoint_files import (
    FILES,
    CheckpointFile,
    remove_checkpoint,
    unfinished_name,
    why_unusable,
)
from rlif_lightning.running.checkpoint_search import find_checkpoints, resolve_checkpoint

GOOD = {"state_dict": {"num_rollouts": torch.tensor(3)}, "loops": {}, "callbacks": {}, "optimizer_states": []}


class Trap:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save(root: Path, version: int, rollout: int, content: object = GOOD) -> Path:
    path = root / f"version_{version}" / "checkpoints" / f"rollout={rollout:06d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def damaged(path: Path) -> Path:
    """A byte in the middle of the largest part is another one; the file's length and directory are whole."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    return path


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path):
    save(tmp_path, 2, 9)
    good = save(tmp_path, 10, 4)  # version 10 is newer than 2, whatever its rollout and its name's order
    newer = cut(save(tmp_path, 10, 5), 0.9)
    assert find_checkpoints(tmp_path)[:2] == [newer, good]
    with pytest.warns(UserWarning, match=r"rollout=000005.ckpt is passed over: it is cut off"):
        assert resolve_checkpoint("last", tmp_path) == good
    with pytest.raises(ValueError, match=rf"{newer.name}: it is cut off.*last good one of .* is {good}"):
        resolve_checkpoint(str(newer), tmp_path)


def test_auto_starts_anew_where_there_is_nothing_and_last_does_not(tmp_path):
    assert resolve_checkpoint("auto", tmp_path) is None
    with pytest.raises(ValueError, match="ckpt_path=last: no whole checkpoint"):
        resolve_checkpoint("last", tmp_path)
    assert resolve_checkpoint(None, tmp_path) is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(tmp_path, share):
    content = {**GOOD, "weights": torch.rand(10000)}
    assert "cut off" in str(why_unusable(cut(save(tmp_path, 0, 1, content), share)))


def test_a_damaged_file_is_refused(tmp_path):
    path = damaged(save(tmp_path, 0, 1, {**GOOD, "weights": torch.rand(10000)}))
    assert "is damaged" in str(why_unusable(path))


@pytest.mark.parametrize("content", [{"a": torch.ones(1)}, [1], {**GOOD, "state_dict": {}}, torch.ones(3)])
def test_a_foreign_file_is_refused(tmp_path, content):
    assert "not a checkpoint of a run of rlif-lightning" in str(why_unusable(save(tmp_path, 0, 1, content)))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_runs_nothing(tmp_path, zipped):
    trap = Trap(tmp_path / "sprung")
    path = save(tmp_path, 0, 1, {**GOOD, "callbacks": trap})
    if not zipped:
        path.write_bytes(pickle.dumps({**GOOD, "callbacks": trap}, protocol=2))
    assert why_unusable(path) is not None
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        CheckpointFile().load_checkpoint(path, weights_only=False)
    with pytest.raises(ValueError, match="there is no other one"):
        resolve_checkpoint(str(path), tmp_path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())  # the trap does work
    assert (tmp_path / "sprung").exists()


def test_a_hostile_checkpoint_is_refused_by_the_command_line_in_one_line(tmp_path, capsys):
    path = save(tmp_path, 0, 1, {**GOOD, "callbacks": Trap(tmp_path / "sprung")})
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, f"--ckpt_path={path}")
    assert info.value.code == 2
    assert f"error: ckpt_path={path}: it cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def folder_of_shards(path: Path) -> Path:
    path.mkdir(parents=True)
    torch.save({"loops": {}, "callbacks": {}}, path / "meta.pt")
    (path / "__0_0.distcp").write_bytes(b"x" * 100)
    checkpoint_files.finish_folder(path, path.with_name("rollout=000001.ckpt"))
    return path.with_name("rollout=000001.ckpt")


def test_a_folder_of_shards_is_whole_or_refused(tmp_path):
    path = folder_of_shards(tmp_path / ".rollout=000001.ckpt.unfinished")
    assert why_unusable(path) is None
    assert set(json.loads((path / FILES).read_text())) == {"meta.pt", "__0_0.distcp"}
    cut(path / "__0_0.distcp", 0.5)
    assert "__0_0.distcp is missing or cut off" in str(why_unusable(path))
    (path / FILES).unlink()
    assert "cannot be read" in str(why_unusable(path))
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path, io = tmp_path / "x.ckpt", CheckpointFile()
    io.save_checkpoint(GOOD, path)
    before = path.read_bytes()
    with pytest.raises((OSError, RuntimeError)):
        io.save_checkpoint({"w": torch.ones(10), "no": open}, Path("/dev/full/x.ckpt"))
    for broken in ({**GOOD, "no": lambda: 1},):
        with pytest.raises(Exception, match="pickle"):
            io.save_checkpoint(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]
    assert unfinished_name(path).name == ".x.ckpt.unfinished"


def test_checkpoints_of_runs_deeper_down_are_not_this_run_s(tmp_path):
    save(tmp_path / "another", 3, 7)
    assert resolve_checkpoint("auto", tmp_path) is None
    assert resolve_checkpoint("auto", tmp_path / "another") is not None
