"""The kills of ``scripts/soak.py``: a phase of a run, a moment in it, processes of the run."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import callbacks.completion_writer
import callbacks.hf_exporter
from callbacks.hf_exporter import HFExporter
from callbacks.steering import Snapshots
from rlif_lightning.evaluation.prediction_files import PredictionFiles
from rlif_lightning.learning.updater import Updater
from rlif_lightning.module import RLIFModule
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.running import checkpoint_files

VICTIMS = ("itself", "another", "all", "launcher")


@dataclass(frozen=True)
class Phase:
    """A function of the run that a kill falls into.

    Attributes:
        owner: module or class that has the function.
        name: of the function.
        calls: one of the first so many calls is chosen.
        by_all: every process calls it; otherwise the first process alone does.
    """

    owner: Any
    name: str
    calls: int = 3
    by_all: bool = True


PHASES = {
    "rollout": Phase(NativeEngine, "generate"),
    "update": Phase(Updater, "accumulate_gradient", calls=12),
    "checkpoint": Phase(checkpoint_files.CheckpointFile, "_write", calls=4, by_all=False),
    "snapshot": Phase(Snapshots, "take", calls=2),
    "rollback": Phase(Snapshots, "restore", calls=2),
    "validation": Phase(RLIFModule, "validation_step", calls=2),
    "export": Phase(callbacks.hf_exporter, "write_model", calls=1, by_all=False),
    "completions": Phase(callbacks.completion_writer, "write_records"),
    "end": Phase(HFExporter, "on_train_end", calls=1),
    "prediction": Phase(PredictionFiles, "write_on_batch_end", calls=2),
}


def arm(name: str, seed: int, processes: int, mark: Path) -> None:
    """Kill processes of this run at a random moment of one of the next calls of a phase's function.

    Args:
        name: of the phase.
        seed: of the call, the moment, the process that kills and those that are killed.
        processes: of the run.
        mark: a file that says whom the kill was sent to.
    """
    phase, draw = PHASES[name], random.Random(seed)
    chosen, share = draw.randint(1, phase.calls), draw.random()
    killer = draw.randrange(processes) if phase.by_all else 0
    victim = draw.choice(VICTIMS) if processes > 1 else "itself"
    if int(os.environ.get("RANK", "0")) != killer:
        return
    original, calls, lasted = getattr(phase.owner, phase.name), 0, 0.01

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, lasted
        calls += 1
        if calls == chosen:
            threading.Thread(
                target=_kill_after, args=(share * lasted, victim, mark), daemon=True
            ).start()
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            lasted = time.perf_counter() - started

    setattr(phase.owner, phase.name, watched)


def _kill_after(seconds: float, victim: str, mark: Path) -> None:
    time.sleep(seconds)
    mark.write_text(victim)
    launcher = [] if victim == "itself" else [os.getppid()]
    others = (
        []
        if victim in ("itself", "launcher")
        else [pid for pid in _children(launcher[0]) if pid != os.getpid()]
    )
    first = {"itself": [], "another": others, "all": [*launcher, *others], "launcher": launcher}[
        victim
    ]
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    if victim in ("itself", "all"):
        os.kill(os.getpid(), signal.SIGKILL)


def _children(parent: int) -> list[int]:
    """Return the processes of the run that a launcher started."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == parent
    ]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def left_over(token: str) -> list[int]:
    """Return processes whose environment names a life of a soak."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            named = f"RLIF_SOAK={token}".encode() in Path(
                f"/proc/{entry}/environ"
            ).read_bytes().split(b"\0")
        except OSError:
            continue
        if named and int(entry) != os.getpid():
            found.append(int(entry))
    return found
