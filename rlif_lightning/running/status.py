"""``python -m rlif_lightning status RUN_DIR``: how a run ended, and what its command would do.

Reads names, ``run.json`` and ``events.jsonl`` only, and imports nothing heavy: it answers at once.
"""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif_lightning.running.checkpoint_names import BEST, ROLLOUT, VERSION, find_checkpoints
from rlif_lightning.running.events import FILE, read_events
from rlif_lightning.running.own_files import is_alive, read_mark

OVER = {
    "finished": "raise trainer.max_epochs to train on",
    "max_steps": "raise trainer.max_steps to train on",
    "max_time": "raise trainer.max_time to train on",
    "guard": "take CollapseGuard out (or CheckerMonitor), or name a checkpoint (--ckpt_path=PATH),"
    " to train on",
    "label_free_stop": "take LabelFreeStopping out, or name a checkpoint (--ckpt_path=PATH), to"
    " train"
    " on",
    "early_stop": "take EarlyStopping out, or name a checkpoint (--ckpt_path=PATH), to train on",
    "stopped": "name a checkpoint (--ckpt_path=PATH) to train on",
}


@dataclass(frozen=True)
class Status:
    """What is known of a run.

    Attributes:
        folder: of its newest life.
        lives: how many folders it has.
        end: one line: why it ended, or that it is running.
        checkpoints: the run's and its root's, the newest first.
        repeated: one line: what its command would do.
    """

    folder: Path
    lives: int
    end: str
    checkpoints: list[Path]
    repeated: str


def read_status(folder: Path) -> Status:
    """Return the status of the run in a folder: a root (its newest run) or one ``version_N``.

    Raises:
        ValueError: there is no run.
    """
    versions = (
        [path for path in folder.glob("version_*") if VERSION.fullmatch(path.name)]
        if folder.is_dir()
        else []
    )
    trained = [path for path in versions if _is_run(path)]
    newest = max(trained, key=lambda path: int(path.name.split("_")[1]), default=folder)
    if not _is_run(newest):
        raise ValueError(f"{folder} has no run: neither version_N folders nor a run's own files")
    root = newest.parent if VERSION.fullmatch(newest.name) else newest
    run = read_mark(newest).get("run")
    lives = [
        path
        for path in root.glob("version_*")
        if run is not None and read_mark(path).get("run") == run
    ]
    checkpoints = [path for path in find_checkpoints(root) if _looks_whole(path)]
    event = next(
        (event for event in reversed(read_events(newest)) if event.get("kind") == "end"), None
    )
    return Status(
        newest,
        max(len(lives), 1),
        _end(newest, event),
        checkpoints,
        _repeated(newest, event, checkpoints),
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("run.json", "checkpoints", FILE))


def _looks_whole(path: Path) -> bool:
    return (
        (path / "files.json").is_file()
        if path.is_dir()
        else path.is_file() and zipfile.is_zipfile(path)
    )


def _values(event: dict[str, Any] | None) -> tuple[str, int]:
    values = event.get("values") if event else None
    values = values if isinstance(values, dict) else {}
    code = values.get("exit_code")
    return str(values.get("reason", "unknown")), int(code) if isinstance(code, (int, float)) else 1


def _end(folder: Path, event: dict[str, Any] | None) -> str:
    if is_alive(folder):
        return f"running (process {read_mark(folder).get('process')})"
    if event is None:
        return "killed, or its machine was lost: no end was written"
    reason, code = _values(event)
    return (
        f"{reason} (exit code {code}) after rollout {event.get('rollout')}: {event.get('message')}"
    )


def _repeated(folder: Path, event: dict[str, Any] | None, checkpoints: list[Path]) -> str:
    if is_alive(folder):
        return "would train beside the process that is running: wait, or stop that one with SIGTERM"
    if not checkpoints:
        return "starts anew: nothing was saved"
    newest, (reason, code) = checkpoints[0], _values(event)
    rollout = int(ROLLOUT.fullmatch(newest.name)[1])  # pyright: ignore[reportOptionalSubscript]
    if event is not None and reason in OVER and code == 0:
        return f"trains nothing and ends with exit code 0; {OVER[reason]}"
    over = read_mark(folder).get("over")
    if isinstance(over, dict) and over.get("reason") in OVER:
        return (
            f"trains nothing ({over.get('message')}), but finishes what was cut off after it:"
            " exports, the report"
        )
    first = (
        "needs other settings first (exit code 2 is a mistake in them), then "
        if code == 2 and event
        else ""
    )
    return f"{first}goes on from {newest} (rollout {rollout})"


def command(arguments: list[str]) -> int:
    """Print the status of a run and return the exit code: 0, or 2 where there is none."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(
            "usage: python -m rlif_lightning status RUN_DIR  (trainer.default_root_dir, or a"
            " version_N in it)"
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        status = read_status(Path(arguments[0]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    best = [path for path in (status.folder / "checkpoints" / BEST,) if path.exists()]
    print(f"ended:       {status.end}")
    print(
        f"run:         {status.folder}, {status.lives} {'life' if status.lives == 1 else 'lives'}"
    )
    print(f"checkpoints: {', '.join(map(str, [*status.checkpoints, *best])) or 'none'}")
    print(f"repeated:    with --ckpt_path=auto the same command {status.repeated}")
    return 0
