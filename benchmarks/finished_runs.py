"""Runs of a benchmark that are made once: a finished run's figures are kept in its folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlif_lightning.running.metrics_csv import read_logged


def logged_rollouts(version: Path, column: str, number: int) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv that have a figure, one for each rollout.

    Raises:
        ValueError: they are not so many.
    """
    rows = [row for row in read_logged(version / "metrics.csv").rows if column in row]
    if len(rows) != number:
        raise ValueError(f"{version} has {len(rows)} rollouts, not {number}; remove it")
    return rows


def figures_of_run(
    name: str,
    arguments: Sequence[str],
    folder: Path,
    measured: Callable[[Path, float], Any],
) -> Any:
    """Return the figures of a run; it is made unless it is finished with these arguments.

    Args:
        name: of the run, for the line that says that it was made.
        arguments: of ``fit``, with the folder among them.
        folder: the run's own; a run that was cut off there is put aside.
        measured: returns figures that JSON can hold, of the folder that the run logged into and
            its CPU seconds.
    """
    from rlif_lightning import cli

    finished = folder / "finished.json"
    if finished.is_file():
        known = json.loads(finished.read_text())
        if known["arguments"] == [*arguments]:
            return known["figures"]
    folder.mkdir(parents=True, exist_ok=True)
    for version in folder.glob("version_*"):
        version.rename(folder / f"cut_off_{version.stat().st_mtime_ns}")
    started = time.process_time()
    with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        cli.main(["fit", *arguments])
    seconds = time.process_time() - started
    figures = measured(next(folder.glob("version_*")), seconds)
    finished.write_text(json.dumps({"arguments": [*arguments], "figures": figures}))
    shown = figures[-1] if isinstance(figures, list) else figures
    print(f"{name}: {seconds:.0f} s, {shown}", flush=True)
    return figures
