"""Which files are a run's own.

A run removes nothing else, whatever a checkpoint that it goes on from says.

A run is one or more lives: processes that go on from each other's checkpoints
(``--ckpt_path=auto``), each in a folder of its own beside the others. The file ``run.json`` in each
folder says which run it belongs to. A copy of a folder under another name is another run, and so is
one that was started from a named checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlif_lightning.running.checkpoint_names import remove_checkpoint
from rlif_lightning.running.run_folder import run_folder
from rlif_lightning.whole_files import replaced

MARK, ALIVE = "run.json", ".alive"
HERE = "."  # the name of a run's folder that is the root itself
NAME = re.compile(r"(\.|(?!\.\.?/)[^/\\\0]+)/(checkpoints|guard)/(rollout=\d+|best)\.ckpt")


def read_mark(folder: Path) -> dict[str, Any]:
    """Return a folder's ``run.json``; empty if there is none or it is another folder's."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and mark.get("folder") in (folder.name, HERE) else {}


def is_alive(folder: Path) -> bool:
    """Return whether another process of this machine is running in a folder now."""
    try:
        with (folder / ALIVE).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def disk_errors_printed(what: str) -> Iterator[None]:
    """Print an error of the disk and go on, where no result rests on the file."""
    try:
        yield
    except OSError as error:
        print(f"warning: {what}: {error}", file=sys.stderr, flush=True)


def locate(name: Any, beside: Path) -> Path | None:
    """Return the file that a checkpoint means by a name; None if no checkpoint is called so.

    Args:
        name: ``FOLDER/checkpoints/rollout=N.ckpt`` and the like, as :meth:`OwnFiles.name` makes it.
        beside: the run's folder that the checkpoint is in.
    """
    if not isinstance(name, str) or not (match := NAME.fullmatch(name)):
        return None
    return beside / name[2:] if match[1] == HERE else beside.parent / name


class OwnFiles:
    """A run's own files.

    Args:
        folder: of this life.
        is_root: whether that is the root itself (no logger gave it a folder of its own).
        source: the checkpoint that this life goes on from, if there is one.

    Attributes:
        run: which run this is; a life that takes an earlier one's place takes its value.
    """

    def __init__(self, folder: Path, is_root: bool = False, source: Path | None = None):
        self.folder, self.is_root, self.source = folder, is_root, source
        self.run = uuid.uuid4().hex
        self._holds = False

    @property
    def source_folder(self) -> Path:
        """Return the folder of the run that this life goes on from; its own without one."""
        return self.folder if self.source is None else self.source.absolute().parent.parent

    def name(self, path: Path) -> str:
        """Return a name for one of this run's files that holds wherever the run is copied to."""
        room = "/".join(path.parts[-2:])
        return f"{HERE if self.is_root else path.parent.parent.name}/{room}"

    def take_the_place_of(self, run: Any) -> bool:
        """Become the run that ``source`` is of, if its folder says so too."""
        if (
            not isinstance(run, str)
            or self.source is None
            or read_mark(self.source_folder).get("run") != run
        ):
            return False
        self.run = run
        return True

    def settle(self, **facts: Any) -> None:
        """Write ``facts`` into the folder, that it is this run's, and that it is alive."""
        with disk_errors_printed(
            f"{self.folder / MARK} could not be written, so a resumed run will leave this folder"
            " alone"
        ):
            self._settle(facts)

    def _settle(self, facts: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = {
            "run": self.run,
            "folder": HERE if self.is_root else self.folder.name,
            "process": os.getpid(),
            **facts,
        }
        with replaced(self.folder / MARK) as unfinished:
            unfinished.write_text(json.dumps(mark, indent=1), encoding="utf-8")
        if not self._holds:
            self._holds = True
            held = os.open(self.folder / ALIVE, os.O_RDWR | os.O_CREAT)
            weakref.finalize(self, os.close, held)
            with suppress(
                OSError
            ):  # a file system without locks: nothing there tells that the run is alive
                fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def folders(self) -> list[Path]:
        """Return the folders of this run: this life's, and those of its dead lives."""
        beside = (
            []
            if self.is_root or not self.folder.parent.is_dir()
            else list(self.folder.parent.iterdir())
        )
        folders = [
            path
            for path in beside
            if path.is_dir() and not path.is_symlink() and not self._is_this(path)
        ]
        return [*sorted(path for path in folders if self._is_dead_life(path)), self.folder]

    def _is_dead_life(self, folder: Path) -> bool:
        return read_mark(folder).get("run") == self.run and not is_alive(folder)

    def _is_this(self, folder: Path) -> bool:
        return folder.resolve() == self.folder.resolve()

    def owns(self, path: Path) -> bool:
        """Return whether a checkpoint is this run's: by name and folder, through no link."""
        folder = path.parent.parent
        if path.parent.is_symlink() or not NAME.fullmatch(self.name(path)):
            return False
        return any(folder.resolve() == own.resolve() for own in self.folders())

    def remove(self, path: Path) -> None:
        """Remove a checkpoint or snapshot, if it is this run's."""
        if self.owns(path):
            remove_checkpoint(path)

    def adopt(self, path: Path) -> Path:
        """Return where a snapshot of another run will be as this one's."""
        return self.folder / path.parent.name / path.name


def copy_in(path: Path, own: Path) -> None:
    """Give a checkpoint a second name, which outlives the first: by a hard link or else a copy."""
    own.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, own, copy_function=_link, dirs_exist_ok=True)
    else:
        _link(str(path), str(own))


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def own_files(trainer: Any) -> OwnFiles:
    """Return those of an RLIFTrainer's run (a collective at the first call)."""
    if getattr(trainer, "own_files", None) is None:
        folder = run_folder(trainer)
        is_root = folder.resolve() == Path(trainer.default_root_dir).resolve()
        trainer.own_files = OwnFiles(folder, is_root, getattr(trainer, "source", None))
    return trainer.own_files
