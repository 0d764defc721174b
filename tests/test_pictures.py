"""Pictures and result files of the docs: drawn and written by their own code."""

from __future__ import annotations

import sys
from pathlib import Path

import pictures
import pytest
from matplotlib.figure import Figure

from benchmarks import quickstart
from benchmarks.compare import row_of, table_of
from benchmarks.results import FOLDER, read_results
from callbacks.report import figures
from callbacks.report.figures import SIZE


def plain(layout: str, **size) -> Figure:
    """A figure without a layout, which is two thirds of a picture's time."""
    return Figure(**size)


def test_every_picture_is_drawn_and_shown(tmp_path, monkeypatch):
    for module in (pictures, figures):
        monkeypatch.setattr(module, "Figure", plain)
        monkeypatch.setattr(module, "DPI", 50)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(tmp_path)])
    pictures.main()
    drawn = {path.name for path in tmp_path.iterdir()}
    committed = {path.name for path in FOLDER.parent.glob("*.*") if path.suffix in (".png", ".svg")}
    assert drawn == committed  # no picture of the docs is drawn by anything else
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 5000
    shown = "".join(
        path.read_text()
        for folder in (".", "docs", "callbacks")
        for path in (FOLDER.parent.parent / folder).glob("*.md")
    )
    assert all(name in shown for name in drawn)
    terminal = (tmp_path / "terminal.svg").read_text()
    assert "http://www.w3.org/2000/svg" in terminal
    assert "@font-face" not in terminal  # nothing is loaded from elsewhere


def test_a_legend_hides_no_curve():
    run = pictures.read_run(pictures.RUN, "quickstart")
    panel = next(each for each in pictures.panels_of([run]) if each.name == "agreement")
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    figures._fill(axes, panel, [run])
    figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    assert len(axes.get_legend().get_texts()) == 3
    assert 0 <= box.y0 < box.y1 < axes.get_window_extent().y0
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def evaluation(rollouts: int, accuracy: float) -> dict:
    others = {name: {"value": 0.5} for name in quickstart.FIGURES}
    return {"rollouts": rollouts, **others, "accuracy": {"value": accuracy}}


def test_the_quickstart_s_figures():
    evaluations = [evaluation(0, 0.25), evaluation(10, 0.5), evaluation(10, 0.5125)]
    figures = quickstart.figures_of(evaluations)
    assert (figures["accuracy before"], figures["accuracy after"]) == ("25.00", "51.25")
    assert figures["entropy after"] == "0.5000"  # nats, not per cent
    assert quickstart.curve_of(evaluations) == {"0": "25.00", "10": "51.25"}
    command = quickstart.command_of("gold", 3, Path("runs/x"))
    assert command[command.index("fit") + 1 :] == [
        "--config=configs/quickstart.yaml",
        "--config=configs/gold.yaml",
        *quickstart.EVERY,
        "--seed_everything=3",
        "--trainer.default_root_dir=runs/x",
    ]


def test_a_line_of_the_comparison():
    """Medians of three repeats: 2 s against 4 s, 150 MiB against 300, 50 and 100 at the start."""

    def side(seconds, peaks, start):
        return [
            {"cpu_seconds_per_step": s, "peak_rss_mib": p, "rss_before_training_mib": start}
            for s, p in zip(seconds, peaks, strict=True)
        ]

    result = {
        "ours": side([2, 9, 1], [150, 140, 160], 50),
        "trl": side([4, 4, 5], [300, 300, 310], 100),
        "floor": [{"cpu_seconds_per_step": 1.0}],
    }
    row = row_of(result)
    assert list(row.values()) == ["2.00", "4.00", "0.50", "0.25", "150", "300", "0.50", "0.50"]
    assert row.keys() == read_results(FOLDER / "speed.csv")["random lengths"].keys()
    assert table_of({"w": row}).row_count == 1


def test_a_picture_needs_its_rows(tmp_path, monkeypatch):
    """Every line of the quickstart's legend has a row, and a missing one is an error."""
    rows = read_results(FOLDER / "quickstart_curves.csv")
    assert pictures.QUICKSTART.keys() <= rows.keys()
    monkeypatch.setattr(pictures, "read_results", lambda path: {})
    with pytest.raises(KeyError, match="gold_0"):
        pictures.quickstart(tmp_path / "x.png")
