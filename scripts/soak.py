"""Kill -9 a run at random moments, start it again each time, and compare the end with a run that was left alone.

    python scripts/soak.py --kills 20 --out runs/soak

Each life is the real command line with ``--ckpt_path=auto``. A kill falls into a phase in turn (rollout, update,
checkpoint: the write of its file) at a moment drawn from a seed: a thread of the process sends it SIGKILL while the
phase's own function runs. At the end parameters, optimiser, schedule, counters and the logged figures must equal those
of the undisturbed run bit for bit; the exit code is 1 where they don't.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlif_lightning import cli, module
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.running import checkpoint_files
from rlif_lightning.running.checkpoint_search import find_checkpoints

PHASES: dict[str, tuple[Any, str]] = {
    "rollout": (NativeEngine, "generate"),
    "update": (module, "accumulate_gradient"),
    "checkpoint": (checkpoint_files.CheckpointFile, "_write"),
}
CONFIG = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.check_val_every_n_epoch=1",
    "--data.source.init_args.validation_size=8",
    "--data.validation_prompts_per_step=8",
    "--data.prompts_per_step=8",
    "--data.group_size=4",
    "--model.lr_schedule=cosine",
    '--trainer.callbacks=[{"class_path": "RunCheckpoints", "init_args": {"every": 1}}]',
]


def arm(phase: str, seed: int) -> None:
    """Kill this process at a random moment of one of the next few calls of a phase's function."""
    owner, name = PHASES[phase]
    original, draw = getattr(owner, name), random.Random(seed)
    calls, chosen, lasted = 0, draw.randint(2, 4 if phase != "update" else 12), 0.01

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, lasted
        calls += 1
        if calls == chosen:
            threading.Thread(target=_kill_after, args=(draw.uniform(0, lasted),), daemon=True).start()
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            lasted = time.perf_counter() - started

    setattr(owner, name, watched)


def _kill_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def live(arguments: list[str], folder: Path, phase: str | None = None, seed: int = 0) -> int:
    """One life of the run in ``folder``; its exit code (-9 if it was killed)."""
    command = [sys.executable, __file__, "--life", phase or "whole", "--seed", str(seed), "--", "fit", *arguments]
    command += [f"--trainer.default_root_dir={folder}", "--ckpt_path=auto"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lives.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False, timeout=600).returncode


def merged_rows(folder: Path) -> tuple[dict[tuple[int, bool], dict[str, str]], int]:
    """The logged figures of all lives by step and kind, times left out; and how many rows were made more than once.

    Raises:
        RuntimeError: two lives made the same row differently.
    """
    found: dict[tuple[int, bool], dict[str, str]] = {}
    again = 0
    for version in sorted(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1])):
        with (
            (version / "metrics.csv").open(newline="") if (version / "metrics.csv").exists() else open(os.devnull) as f
        ):
            for row in csv.DictReader(f):
                if None in row.values() or not row["step"]:
                    continue  # the line at which the process was killed
                kept = {k: v for k, v in row.items() if v and "time/" not in k and "per_second" not in k}
                place = (int(row["step"]), "val/entropy" in kept)
                if place in found and found[place] != kept:
                    raise RuntimeError(f"{version}: {place} was {found[place]}, is {kept}")
                again += place in found
                found[place] = kept
    return found, again


def same(left: Any, right: Any) -> bool:
    """Whether two values of a checkpoint are equal bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def differences(whole: Path, soaked: Path) -> list[str]:
    """What the last checkpoint and the logged figures of two roots differ in."""
    paths = [next(iter(find_checkpoints(root)), None) for root in (whole, soaked)]
    if None in paths or paths[0].name != paths[1].name:  # pyright: ignore[reportOptionalMemberAccess]
        return [f"last checkpoints: {paths}"]
    left, right = (torch.load(str(path), weights_only=True) for path in paths)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    found = [part for part in parts if not same(left[part], right[part])]
    if merged_rows(whole)[0] != merged_rows(soaked)[0]:
        found.append("metrics.csv")
    return found


def soak(kills: int, out: Path, seed: int, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Run once undisturbed and once killed ``kills`` times; what was found."""
    epochs = max(2, -(-kills // 2))
    arguments = [*CONFIG, "--data.source.init_args.size=32", f"--trainer.max_epochs={epochs}"]
    arguments.append(f"--model.schedule_steps={16 * epochs}")
    if code := live(arguments, out / "whole"):
        raise RuntimeError(f"the undisturbed run ended with {code}: {out / 'whole' / 'lives.log'}")
    done, draw, code = Counter(), random.Random(seed), -signal.SIGKILL
    while done.total() < kills and code == -signal.SIGKILL:
        phase = list(PHASES)[done.total() % len(PHASES)]
        code = live(arguments, out / "soaked", phase, draw.randrange(2**31))
        done[phase] += code == -signal.SIGKILL
        found = find_checkpoints(out / "soaked")
        report(f"{phase}: exit code {code}, newest checkpoint {found[0].name if found else None}")
    if code == -signal.SIGKILL:
        code = live(arguments, out / "soaked")
    again = merged_rows(out / "soaked")[1]
    unfinished = [str(path) for path in (out / "soaked").rglob("*.unfinished")]
    return {
        "kills": dict(done), "exit_code": code, "rollouts": 4 * epochs, "rows_made_again": again,
        "half_written_left": unfinished, "differences": differences(out / "whole", out / "soaked"),
    }  # fmt: skip


def main() -> None:
    """The command line; ``--life`` is one process of a soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--life", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.life is not None:
        if given.life != "whole":
            arm(given.life, given.seed)
        sys.argv = ["rlif", *given.rest]
        cli.command()
        return
    if given.out.exists():
        raise SystemExit(f"--out {given.out} exists; give a new folder")
    result = soak(given.kills, given.out, given.seed)
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["differences"] or result["exit_code"] else 0)


if __name__ == "__main__":
    main()
