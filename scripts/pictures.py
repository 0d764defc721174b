"""The pictures of the docs, drawn from the files in docs/results/ in one style.

    python scripts/pictures.py            # writes all of them into docs/
    python scripts/pictures.py --only quickstart

The quickstart's and the study's numbers come from ``python -m benchmarks.quickstart`` and
``python -m benchmarks.collapse_study``. The run report and the terminal's table come from the run
in ``docs/results/run``; callbacks/README.md has its command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from rich.console import Console
from rich.text import Text

from benchmarks.results import FOLDER, read_results
from benchmarks.study_arms import ARMS, JUDGING
from benchmarks.study_rows import read_runs as read_study
from callbacks.completion_writer import WIDTH, render
from callbacks.report.figures import COLORS, DPI, draw_panel
from callbacks.report.panels import panels_of
from callbacks.report.read import read_run
from rlif_lightning.running.metrics_csv import read_logged
from rlif_lightning.running.progress import progress_line

DOCS = FOLDER.parent
RUN = FOLDER / "run"
QUICKSTART = {  # row of the result file -> what the legend says
    "gold_0": "gold answers",
    "vote_logprob_0": "vote + mean log-probability (the quickstart)",
    "paper_pair_0": "vote + self-certainty (the paper's pair)",
    "self_certainty_0": "self-certainty alone",
}
REPORT = [
    "accuracy",
    "agreement",
    "share",
    "vote_alignment",
    "entropy",
    "alarms",
    "log_ratio",
    "sampler_gap",
]
RECIPES = {  # arms by rate -> title
    "gold-{}": "gold answers",
    "vote-{}": "the vote",
    "vote-{}-kl": "vote + reference KL",
    "preset-{}-no_kl": "vote + second reward",
    "preset-{}": "vote + both: preset",
    "paper-{}": "the paper's pair",
}
KINDS = {"hot": "5e-4", "quarter": "1.25e-4", "hot-guard": "5e-4, the guard halves it"}


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles, labels and grid as in the run report."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without the date and version that would differ from time to time."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def quickstart(path: Path) -> None:
    """Accuracy of four runs of the quickstart over rollouts."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    rows = read_results(FOLDER / "quickstart_curves.csv")
    for color, (name, label) in zip(COLORS, QUICKSTART.items(), strict=False):
        points = [(int(rollout), float(value)) for rollout, value in rows[name].items()]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=label)
    axes.set_ylim(0, 102)
    style(axes, "Accuracy on held-out problems, seed 0", "rollout", "%, each of 8 samples")
    axes.legend(fontsize=8, frameon=False)
    save(figure, path)


def study(path: Path) -> None:
    """Accuracy of the study's recipes at two rates, by rollouts and by summed learning rate."""
    names = {recipe.format(kind) for recipe in RECIPES for kind in KINDS} & ARMS.keys()
    runs = [run for run in read_study(arms=sorted(names)) if run.seed in JUDGING]
    figure = Figure(figsize=(16.0, 6.4), layout="constrained")
    grid = figure.subplots(2, len(RECIPES), sharey=True, sharex="row")
    for column, (recipe, title) in enumerate(RECIPES.items()):
        for number, (kind, label) in enumerate(KINDS.items()):
            own = [run for run in runs if run.arm == recipe.format(kind)]
            for axes, xs in zip(grid[:, column], ("rollouts", "rates"), strict=True):
                for seed, run in enumerate(own):
                    points = getattr(run, xs), 100 * np.array(run.accuracy)
                    name = label if seed == 0 else None
                    axes.plot(*points, color=COLORS[number], alpha=0.8, linewidth=1.1, label=name)
        style(grid[0, column], title, "rollouts", "%, held out" if column == 0 else "")
        axis = "summed rate, rollouts at 5e-4"
        style(grid[1, column], "", axis, "%, held out" if column == 0 else "")
    lines, labels = grid[0, 0].get_legend_handles_labels()
    place = "outside upper right"  # outside, where it hides no line
    figure.legend(lines, labels, ncols=len(KINDS), fontsize=9, frameon=False, loc=place)
    grid[0, 0].set_ylim(0, 102)
    grid[0, 0].set_xticks(range(0, 1201, 400))
    save(figure, path)


def report(path: Path) -> None:
    """Eight panels of the run report of one run, in a grid."""
    run = read_run(RUN, "quickstart")
    panels = {panel.name: panel for panel in panels_of([run])}
    images = [imread(io.BytesIO(draw_panel(panels[name], [run]))) for name in REPORT]
    rows = [np.hstack(images[:4]), np.hstack(images[4:])]
    imsave(path, np.vstack(rows), metadata={"Software": "rlif-lightning"})


def terminal(path: Path) -> None:
    """The table that CompletionWriter prints, as SVG; the fonts are the reader's."""
    records = [json.loads(line) for line in (RUN / "completions.jsonl").read_text().splitlines()]
    last = [each for each in records if each["rollout"] == records[-1]["rollout"]]
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(render(last, width=60, color=True)))
    text = console.export_svg(title="CompletionWriter", unique_id="terminal")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.S))


def terminal_at(width: int) -> Callable[[Path], None]:
    """Return what draws a run in a terminal of so many columns: header, progress, completions."""

    def draw(path: Path) -> None:
        lines = (RUN / "completions.jsonl").read_text().splitlines()
        group = [json.loads(line) for line in lines[:8]]
        rows = read_logged(RUN / "metrics.csv").rows
        console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
        console.print(Text((RUN / "header.txt").read_text().rstrip()), soft_wrap=False)
        console.print(Text(progress(rows, group[0]["rollout"], width - 1)))
        with mock.patch.dict(os.environ, {"COLUMNS": str(width)}):  # the table's own console
            console.print(Text.from_ansi(render(group, width=WIDTH, color=True)))
        text = console.export_svg(title=f"{width} columns", unique_id=f"terminal{width}")
        path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.S))

    return draw


def progress(rows: Sequence[Mapping[str, Any]], done: int, width: int) -> str:
    """Return the line of progress after so many rollouts."""
    trained = [row for row in rows if row.get("time/rollout")][:done]
    times = ("time/rollout", "time/reward", "time/update")
    seconds = sum(float(row[name]) for row in trained for name in times) / done
    names = {"vote": "reward/vote/mean", "entropy": "policy/entropy", "length": "rollout/length"}
    shown = {name: float(trained[-1][column]) for name, column in names.items()}
    return progress_line(done, 40, seconds, shown, width)


PICTURES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "quickstart": ("quickstart.png", quickstart),
    "study": ("collapse-study.png", study),
    "report": ("run-report.png", report),
    "terminal": ("terminal.svg", terminal),
    "terminal80": ("terminal-80.svg", terminal_at(80)),
    "terminal160": ("terminal-160.svg", terminal_at(160)),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (default: docs)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        file, draw = PICTURES[name]
        draw(given.out / file)
        print(given.out / file)


if __name__ == "__main__":
    main()
