"""A run removes what it made and nothing else: copies, forks, and checkpoints with forged names in
them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import CollapseGuard
from harness.runs import ALWAYS, BASE, LONG, checkpoint_names, fit, saving
from rlif_lightning import cli
from rlif_lightning.running.checkpoint_names import find_checkpoints
from rlif_lightning.running.own_files import ALIVE, OwnFiles, is_alive, locate

pytestmark = pytest.mark.filterwarnings(
    "ignore:CollapseGuard, rollout", "ignore:.*is passed over", "ignore:snapshots are taken anew"
)
ONE = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1"]
DETECTORS = {name: None for name in CollapseGuard().detectors} | {"mine": {**ALWAYS, "window": 99}}
GUARD = {"action": "rollback", "baseline": 1, "snapshot_every": 1, "detectors": DETECTORS}


def guarded() -> str:
    return "--trainer.callbacks+=" + json.dumps({"class_path": "CollapseGuard", "init_args": GUARD})


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder with its inode: the same before and after if nothing was removed or
    replaced.
    """
    return {
        str(path.relative_to(folder)): path.lstat().st_ino
        for path in folder.rglob("*")
        if path.name != ALIVE
    }


def rewrite(path: Path, **changes: Any) -> None:
    """Change the states of RunCheckpoints and CollapseGuard in a checkpoint, as a forger would."""
    content = torch.load(path, weights_only=True)
    for state in content["callbacks"].values():
        if "kept" in state:
            state.update({name: value for name, value in changes.items() if name in state})
        if "snapshots" in state:
            state["snapshots"].update(
                {name: value for name, value in changes.items() if name in state["snapshots"]}
            )
    torch.save(content, path)


@pytest.mark.full  # its files are found where it lies: below
def test_a_copy_that_goes_on_leaves_the_original_alone(tmp_path):
    fit(tmp_path / "original", saving(every=1, keep=1), guarded(), *ONE)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    before = tree(tmp_path / "original")
    fit(tmp_path / "copy", saving(every=1, keep=1), guarded(), *LONG, "--ckpt_path=auto")
    assert tree(tmp_path / "original") == before
    assert [path.name for path in find_checkpoints(tmp_path / "copy")] == [
        "rollout=000003.ckpt"
    ]  # its own it drops


@pytest.mark.slow
def test_a_copied_folder_beside_the_original_is_another_run(tmp_path):
    fit(tmp_path, saving(every=1, keep=1), *ONE)
    shutil.copytree(tmp_path / "version_0", tmp_path / "version_1")
    before = tree(tmp_path / "version_0"), tree(tmp_path / "version_1")
    fit(tmp_path, saving(every=1, keep=1), *LONG, "--ckpt_path=auto")
    assert (tree(tmp_path / "version_0"), tree(tmp_path / "version_1")) == before


@pytest.mark.slow
def test_a_fork_leaves_the_other_run_s_snapshots_and_has_its_own(tmp_path):
    fit(tmp_path / "run", saving(every=1, keep=1), guarded(), *LONG)
    (path,) = find_checkpoints(tmp_path / "run")
    before = tree(tmp_path / "run")
    for root in ("fork", "run"):
        fit(
            tmp_path / root,
            saving(every=1, keep=1),
            guarded(),
            "--trainer.limit_train_batches=2",
            "--trainer.max_epochs=4",
            f"--ckpt_path={path}",
        )
    after = tree(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert len(list((tmp_path / "fork" / "version_0" / "guard").iterdir())) == 2


def outside(folder: Path) -> tuple[Path, dict[str, int]]:
    """Files that no run may touch, some of them where a run's names could lead to."""
    for place in (
        "outside/checkpoints",
        "outside/guard",
        "root/version_7/checkpoints",
        "root/version_7/guard",
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in ("rollout=000001.ckpt", "rollout=1.ckpt", "best.ckpt", "precious.txt"):
            (folder / place / name).write_text("precious")
    return folder / "outside", tree(folder)


@pytest.mark.parametrize(
    "attack",
    [
        "parent",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in ("absolute", "another version", "link to a folder", "link to a file")
        ),
    ],
)
def test_a_forged_checkpoint_removes_nothing(tmp_path, attack):
    root = tmp_path / "root"
    fit(root, saving(every=1, keep=1), guarded(), *ONE)
    (path,) = find_checkpoints(root)
    away, _ = outside(tmp_path)
    if attack.startswith("link"):
        inside = root / "version_0"
        for room in ("checkpoints", "guard"):
            if attack == "link to a file":
                os.symlink(away / room, inside / room / "rollout=7.ckpt")
            else:
                shutil.copytree(inside / room, inside / f"{room}2")
                shutil.rmtree(inside / room)
                os.symlink(away / room, inside / room)
        if attack == "link to a folder":
            path = Path(shutil.copy(inside / "checkpoints2" / path.name, away / "x"))
        kept, dropped = "version_0/checkpoints/rollout=7.ckpt", "version_0/guard/rollout=7.ckpt"
        if attack == "link to a folder":
            kept, dropped = (
                "version_0/checkpoints/rollout=000001.ckpt",
                "version_0/guard/rollout=1.ckpt",
            )
            path = path.rename(root / "version_0" / "checkpoints" / "rollout=000009.ckpt")
    else:
        start = {"absolute": str(away), "parent": "../outside", "another version": "version_7"}[
            attack
        ]
        kept, dropped = f"{start}/checkpoints/rollout=000001.ckpt", f"{start}/guard/rollout=1.ckpt"
    rewrite(
        path,
        kept=[kept, kept.replace("000001", "1")],
        best=-1e9,
        dropped=[(0, dropped)],
        best_path=f"{kept.rsplit('/', 1)[0]}/best.ckpt",
    )
    before = tree(away), tree(root / "version_7")
    arguments = [
        saving(every=1, keep=1, monitor="policy/entropy"),
        guarded(),
        *LONG,
        "--ckpt_path=auto",
    ]
    fit(root, *arguments)
    assert (tree(away), tree(root / "version_7")) == before


@pytest.mark.parametrize(
    "name",
    [
        "/etc/checkpoints/rollout=1.ckpt",
        "../checkpoints/rollout=1.ckpt",
        "a/b/checkpoints/rollout=1.ckpt",
        "version_0/checkpoints/../x.ckpt",
        "version_0/other/rollout=1.ckpt",
        "version_0/checkpoints/x.ckpt",
        "",
        7,
        None,
        "version_0\0/checkpoints/rollout=1.ckpt",
        "version_0/checkpoints/rollout=1.ckpt\n",
    ],
)
def test_names_that_are_none_are_nowhere(tmp_path, name):
    assert locate(name, tmp_path / "version_3") is None


def test_names_are_found_wherever_the_run_lies(tmp_path):
    own = OwnFiles(tmp_path / "version_3")
    path = tmp_path / "version_2" / "checkpoints" / "rollout=000004.ckpt"
    assert own.name(path) == "version_2/checkpoints/rollout=000004.ckpt"
    assert locate(own.name(path), Path("/else/version_3")) == Path(
        "/else/version_2/checkpoints/rollout=000004.ckpt"
    )
    root = OwnFiles(tmp_path, is_root=True)
    assert locate(root.name(tmp_path / "guard" / "rollout=1.ckpt"), Path("/else")) == Path(
        "/else/guard/rollout=1.ckpt"
    )


def test_what_another_life_that_is_running_made_is_left_alone(tmp_path):
    mine, other = OwnFiles(tmp_path / "version_1"), tmp_path / "version_0"
    code = (
        "import sys; from pathlib import Path; from rlif_lightning.running.own_files import"
        " OwnFiles\n"
        "own = OwnFiles(Path(sys.argv[1])); own.run = sys.argv[2]; own.settle(); print('there',"
        " flush=True); input()"
    )
    path = other / "checkpoints" / "rollout=000001.ckpt"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(other), mine.run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path.parent.mkdir()
        path.touch()
        mine.settle()
        assert is_alive(other)
        mine.remove(path)
        assert path.exists()
        process.communicate("\n")
    assert not is_alive(other)
    mine.remove(path)
    assert not path.exists()


@pytest.mark.slow
def test_an_export_folder_of_another_run_is_not_replaced(tmp_path, capsys):
    shared = tmp_path / "shared"
    (shared / "last").mkdir(parents=True)
    (shared / "last" / "thesis.txt").touch()
    exporter = json.dumps({"class_path": "HFExporter", "init_args": {"folder": str(shared)}})
    arguments = [f"--trainer.callbacks+={exporter}", saving(every=1), *ONE]

    def refused(root: str, *more: str) -> None:
        before = tree(shared)
        with pytest.raises(SystemExit) as info:
            fit(tmp_path / root, *arguments, *more)
        assert info.value.code == 2
        assert "has 'last' already, and it is not from this run" in capsys.readouterr().err
        assert tree(shared) == before

    refused("run")
    shutil.rmtree(shared)
    fit(tmp_path / "run", *arguments)
    first = tree(shared)
    (path,) = find_checkpoints(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    refused("copy", "--ckpt_path=auto", "--trainer.max_epochs=2")
    refused("run", f"--ckpt_path={path}", "--trainer.max_epochs=2")
    fit(tmp_path / "run", *arguments, "--ckpt_path=auto", "--trainer.max_epochs=2")
    assert tree(shared) != first


@pytest.mark.parametrize("name", ["completions-00000.jsonl", "README.md", "link"])
def test_predict_does_not_write_into_a_folder_that_it_did_not_begin(tmp_path, capsys, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    if name == "link":
        (folder / "settings.json").write_text("{}")
        os.symlink(tmp_path / "precious", folder / "completions-00000.jsonl")
    else:
        (folder / name).write_text("precious")
    before = tree(tmp_path)
    arguments = [argument for argument in BASE if "compare" not in argument]
    with pytest.raises(SystemExit):
        cli.main(
            [
                "predict",
                *arguments,
                f"--trainer.default_root_dir={tmp_path / 'root'}",
                f"--predictions.folder={folder}",
                "--trainer.logger=false",
            ]
        )
    assert "which predict did not write" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "precious"
    assert {
        name: inode for name, inode in tree(tmp_path).items() if not name.startswith("root")
    } == before
    assert checkpoint_names(tmp_path) == []


HALVES = [
    "checkpoints/.rollout=000007.ckpt.unfinished",
    "checkpoints/.rollout=000001.ckpt.old",
    "guard/.rollout=7.ckpt.unfinished",
    "export/.best.unfinished",
    "export/.last.old",
    "report.html.unfinished",
    "report/overview.png.unfinished",
    "metrics.csv.unfinished",
    "evaluation.tmp",
    "completions/rollout-000001.unfinished",
]


def leave(folder: Path) -> list[Path]:
    """What a killed life may leave in its folder."""
    left = [
        folder / name
        for name in [*HALVES, "checkpoints/rollout=000000.ckpt", "guard/rollout=7.ckpt"]
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if path.parent.name == "export" else path.write_text("half")
    return left


@pytest.mark.slow
def test_what_dead_lives_left_goes_and_nothing_else(tmp_path):
    run = [saving(every=1, keep=1, monitor="policy/entropy"), guarded()]
    fit(tmp_path, *run, *ONE)
    fit(tmp_path, saving(every=1, keep=1), *ONE)  # another run in the same root
    left, others = leave(tmp_path / "version_0"), leave(tmp_path / "version_1")
    users = [
        tmp_path / "version_0" / name
        for name in ("notes.unfinished", "export/mine.old", "guard/notes.txt")
    ]
    for path in users:
        path.write_text("mine")
    (
        tmp_path / "version_1" / "checkpoints" / "rollout=000001.ckpt"
    ).unlink()  # so that auto finds the first run
    (tmp_path / "version_1" / "checkpoints" / "rollout=000000.ckpt").rename(
        tmp_path / "version_1" / "zero"
    )
    fit(tmp_path, *run, *LONG, "--ckpt_path=auto")
    assert [path.name for path in left if path.exists()] == []
    assert (
        tmp_path / "version_0" / "export" / "last"
    ).is_dir()  # an export that was moved away to be replaced
    assert all(path.exists() for path in users)
    assert [path.name for path in others if not path.exists()] == [
        "rollout=000000.ckpt"
    ]  # the one renamed above
    assert len(list(tmp_path.glob("version_*/checkpoints/best.ckpt"))) == 1
