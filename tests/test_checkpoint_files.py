"""Checkpoints as files: whole or not there, examined before they are trusted, found again; no code
runs.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from harness.runs import fit
from rlif_lightning.running import checkpoint_faults, checkpoint_files
from rlif_lightning.running.checkpoint_faults import Expected, why_unusable
from rlif_lightning.running.checkpoint_files import FILES, CheckpointFile
from rlif_lightning.running.checkpoint_names import (
    find_checkpoints,
    remove_checkpoint,
    unfinished_name,
)
from rlif_lightning.running.checkpoint_search import resolve_checkpoint

PROGRESS = {"total": {"ready": 3, "completed": 3}, "current": {"ready": 3, "completed": 3}}
LOOPS = {"fit_loop": {"epoch_progress": PROGRESS, "epoch_loop.batch_progress": PROGRESS}}
MOMENTS = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 2)}
GOOD = {
    "state_dict": {"num_rollouts": torch.tensor(3), "policy.w": torch.ones(4, 2)},
    "loops": LOOPS,
    "callbacks": {},
    "lr_schedulers": [],
    "optimizer_states": [{"state": {0: MOMENTS}, "param_groups": [{"params": [0]}]}],
}
WEIGHTS = GOOD["state_dict"]
MODEL = Expected(
    {"num_rollouts": (), "policy.w": (4, 2)},
    {"num_rollouts": False, "policy.w": True},
    ["policy.w"],
)


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
    """A byte in the middle of the largest part is another one; the file's length and directory are
    whole.
    """
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    return path


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path):
    save(tmp_path, 2, 9)
    good = save(
        tmp_path, 10, 4
    )  # version 10 is newer than 2, whatever its rollout and its name's order
    newer = cut(save(tmp_path, 10, 5), 0.9)
    os.utime(newer, (0, 0))  # as a clock that was wrong wrote it
    assert find_checkpoints(tmp_path)[:2] == [newer, good]
    with pytest.warns(UserWarning, match=r"rollout=000005.ckpt is passed over: it is cut off"):
        assert resolve_checkpoint("last", tmp_path) == good
    with pytest.raises(
        ValueError, match=rf"{newer.name}: it is cut off.*last good one of .* is {good}"
    ):
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


@pytest.mark.parametrize(
    "content", [{"a": torch.ones(1)}, [1], {**GOOD, "state_dict": {}}, torch.ones(3)]
)
def test_a_foreign_file_is_refused(tmp_path, content):
    assert "not a checkpoint of a run of rlif-lightning" in str(
        why_unusable(save(tmp_path, 0, 1, content))
    )


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
    torch.load(path, weights_only=False) if zipped else pickle.loads(
        path.read_bytes()
    )  # the trap does work
    assert (tmp_path / "sprung").exists()


def test_a_hostile_checkpoint_is_refused_by_the_command_line_in_one_line(tmp_path, capsys):
    path = save(tmp_path, 0, 1, {**GOOD, "callbacks": Trap(tmp_path / "sprung")})
    with pytest.raises(SystemExit) as info:
        fit(tmp_path, f"--ckpt_path={path}")
    assert info.value.code == 2
    assert f"error: ckpt_path={path}: it cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def optimizer(count: int = 1, **moments: torch.Tensor) -> list[Any]:
    return [
        {"state": {0: {**MOMENTS, **moments}}, "param_groups": [{"params": list(range(count))}]}
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loops": {}}, "loops do not say where training was"),
        ({"loops": {"fit_loop": {}}}, "loops do not say where training was"),
        ({"loops": {"fit_loop": {"epoch_progress": {"total": {"ready": -1}}}}}, "(epoch_progress)"),
        (
            {"state_dict": {**WEIGHTS, "policy.w": torch.full((4, 2), torch.nan)}},
            "policy.w has numbers that are not",
        ),
        (
            {"state_dict": {**WEIGHTS, "policy.w": torch.tensor([[1, 2, 3, torch.inf]] * 2).T}},
            "policy.w has numbers",
        ),
        (
            {"optimizer_states": optimizer(exp_avg=torch.full((4, 2), torch.nan))},
            "exp_avg has numbers that are not",
        ),
        (
            {"state_dict": {**WEIGHTS, "policy.w": torch.ones(1).expand(4, 2)}},
            "more than are there",
        ),
        (
            {"state_dict": {**WEIGHTS, "policy.w": torch.ones(2, 4)}},
            "shape [2, 4]; the configured model needs [4, 2]",
        ),
        (
            {"state_dict": {**WEIGHTS, "policy.w": torch.ones(4, 2, dtype=torch.int64)}},
            "another kind of numbers",
        ),
        ({"state_dict": {"num_rollouts": torch.tensor(3)}}, "it lacks policy.w"),
        ({"state_dict": {**WEIGHTS, "policy.x": torch.ones(1)}}, "it has policy.x"),
        ({"state_dict": {**WEIGHTS, "policy.w": 3}}, "policy.w is no tensor"),
        ({"state_dict": {**WEIGHTS, "num_rollouts": torch.tensor(-3)}}, "no count of rollouts"),
        (
            {"optimizer_states": optimizer(exp_avg=torch.ones(3))},
            "optimiser's exp_avg of policy.w has the shape [3]",
        ),
        ({"optimizer_states": optimizer(count=2)}, "its optimiser has 2 parameters"),
        ({"format": 2}, "it has the format 2, of a newer version of rlif-lightning"),
    ],
)
def test_contents_that_do_not_fit_are_refused_and_the_older_one_is_taken(tmp_path, change, message):
    good, bad = save(tmp_path, 0, 1), save(tmp_path, 0, 2, {**GOOD, **change})
    assert message in str(why_unusable(bad, MODEL))
    with pytest.warns(UserWarning, match=r"rollout=000002.ckpt is passed over"):
        assert resolve_checkpoint("auto", tmp_path, MODEL) == good


def test_numbers_as_they_may_be_pass(tmp_path):
    """Large ones whose sum is not finite in their own precision, a head's buffer that is infinite,
    views, half.
    """
    weights = {
        **WEIGHTS,
        "policy.large": torch.full((9,), 3e38),
        "policy.half": torch.full((9999,), 6e4).half(),
        "policy.tied": WEIGHTS["policy.w"],
        "policy.view": torch.ones(9, 9)[:, 3:5],
        "rewards.best": torch.tensor(torch.inf),
        "policy.empty": torch.ones(0, 3),
        "policy.bool": torch.ones(3, dtype=torch.bool),
    }
    assert why_unusable(save(tmp_path, 0, 1, {**GOOD, "state_dict": weights})) is None


def test_auto_does_not_start_anew_beside_checkpoints_of_another_model(tmp_path):
    save(tmp_path, 0, 1, {**GOOD, "state_dict": {**WEIGHTS, "policy.w": torch.ones(2, 4)}})
    with pytest.raises(
        ValueError, match=r"needs \[4, 2\]; configure that model, or give another default_root_dir"
    ):
        resolve_checkpoint("auto", tmp_path, MODEL)


@pytest.mark.parametrize("kind", ["device", "pipe", "compressed", "plain values"])
def test_what_would_eat_memory_or_hang_is_not_read(tmp_path, kind):
    path = save(tmp_path, 0, 1)
    if kind == "compressed":
        with zipfile.ZipFile(path) as archive:
            parts = {part.filename: archive.read(part) for part in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content + bytes(2**20 if name.endswith("/0") else 0))
    elif kind == "plain values":
        save(tmp_path, 0, 1, {**GOOD, "callbacks": {"x": "y" * 2**26}})
    else:
        path.unlink()
        path.symlink_to("/dev/zero") if kind == "device" else os.mkfifo(path)
    told = {"compressed": "it is compressed", "plain values": "bytes that are no tensors"}
    assert told.get(kind, "it is a device or a pipe") in str(why_unusable(path))


def folder_of_shards(path: Path, weights: torch.Tensor | None = None) -> Path:
    path.mkdir(parents=True)
    torch.save(
        {
            name: part
            for name, part in GOOD.items()
            if name not in ("state_dict", "optimizer_states")
        },
        path / "meta.pt",
    )
    state = {**WEIGHTS, "policy.w": WEIGHTS["policy.w"] if weights is None else weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state_dict": state, "optimizer_0": optimizer()[0]}, checkpoint_id=path)
    checkpoint_files.finish_folder(path, path.with_name("rollout=000001.ckpt"))
    return path.with_name("rollout=000001.ckpt")


def listed(path: Path, *left_out: str) -> None:
    """Remove files from a folder of shards, and from its list."""
    sizes = json.loads((path / FILES).read_text())
    for name in left_out:
        (path / name).unlink()
    (path / FILES).write_text(
        json.dumps({name: size for name, size in sizes.items() if name not in left_out})
    )


def test_a_folder_of_shards_is_whole_or_refused(tmp_path):
    path = folder_of_shards(tmp_path / ".rollout=000001.ckpt.unfinished")
    assert why_unusable(path, MODEL) is None
    assert set(json.loads((path / FILES).read_text())) == {"meta.pt", ".metadata", "__0_0.distcp"}
    cut(path / "__0_0.distcp", 0.5)
    assert "__0_0.distcp is missing or cut off" in str(why_unusable(path))
    (path / FILES).unlink()
    assert "cannot be read" in str(why_unusable(path))
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_tensors_beside_the_shards_may_be_large_and_plain_values_may_not(tmp_path, monkeypatch):
    """A replay buffer lies there."""
    monkeypatch.setattr(checkpoint_faults, "MAX_PLAIN", 2**16)
    path = folder_of_shards(tmp_path / ".rollout=000001.ckpt.unfinished")
    rest = {name: part for name, part in GOOD.items() if name in checkpoint_faults.REST_PARTS}
    for more, fault in (
        ({"replay": torch.zeros(2**16)}, None),
        ({"more": "x" * 2**16}, "its part meta.pt: it has "),
    ):
        torch.save(rest | more, path / "meta.pt")
        sizes = json.loads((path / FILES).read_text())
        sizes["meta.pt"] = (path / "meta.pt").stat().st_size
        (path / FILES).write_text(json.dumps(sizes))
        found = why_unusable(path, MODEL)
        assert found is None if fault is None else str(found).startswith(fault)


@pytest.mark.parametrize(
    ("weights", "left_out", "message"),
    [
        (None, ["__0_0.distcp"], "without shards"),
        (None, [".metadata"], "No such file"),
        (None, ["meta.pt"], "its part meta.pt is not listed"),
        (torch.full((4, 2), torch.nan), [], "policy.w has numbers that are not finite"),
        (torch.ones(2, 4), [], "shape [2, 4]; the configured model needs [4, 2]"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path, weights, left_out, message):
    path = folder_of_shards(tmp_path / ".rollout=000001.ckpt.unfinished", weights)
    listed(path, *left_out)
    assert message in str(why_unusable(path, MODEL))


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
