"""The run report: made by real runs, and from folders as killed, old and hostile runs leave
them.
"""

from __future__ import annotations

import base64
import json
import re
import runpy
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from callbacks.report import figures, read_run
from callbacks.report.figures import draw_overview, draw_panel
from callbacks.report.panels import panels_of
from callbacks.run_report import main
from harness.children import in_child
from harness.runs import FEW, TINY, fit

PNG = b"\x89PNG\r\n\x1a\n"
HEADER = "epoch,step,policy/entropy,reward/vote/mean,reward/vote/share,vote/unanimous,val/accuracy"


@pytest.fixture(scope="module", autouse=True)
def quick_pictures():
    """Small, and without a layout, which is two thirds of a picture's time."""

    def plain(layout: str, **size) -> Figure:
        return Figure(**size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "Figure", plain)
        patch.setattr(figures, "DPI", 40)
        yield patch


@pytest.fixture
def as_shipped(quick_pictures):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "Figure", Figure)
        patch.setattr(figures, "DPI", 120)
        yield


@pytest.fixture
def one_picture(monkeypatch):
    """For tests that read the page: a panel takes a sixth of a second."""
    monkeypatch.setattr("callbacks.report.panels.panels_of", lambda runs: panels_of(runs)[:1])


class Broken(Callback):
    """A user's callback with a mistake in it, met at the second rollout."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("broken on purpose")


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def folder_of(path: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.csv").write_text("\n".join([header, *rows]) + end)
    return path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with everything that a report shows: evaluations before and after, completions,
    percentiles, versions.
    """
    folder = tmp_path_factory.mktemp("reported")
    added = [
        f"--trainer.callbacks+={name}"
        for name in ("EntropyMonitor", "CompletionWriter", "RunReport")
    ]
    run = fit(folder, *FEW, "--compare=true", "--model.evaluation.samples=2", *added)
    return run, folder / "version_0"


def test_a_run_writes_its_report_with_the_evaluation_after_it(reported):
    run, folder = reported
    page = Page(folder / "report.html")
    before, after = (100 * value for value in read_run(folder).evaluation.columns["val/accuracy"])
    assert read_run(folder).evaluation.x.tolist() == [0, 2]
    assert f"{before:.1f} %" in page.text
    assert f"{after:.1f} %" in page.text
    assert "2 rollouts, 2 evaluations" in page.text
    assert 100 * float(run.trainer.callback_metrics["val/accuracy"]) == pytest.approx(after)
    for heading in (
        "Answers",
        "Rewards",
        "Completions",
        "Policy",
        "Optimisation",
        "Example completions",
        "Versions",
    ):
        assert ("h2", {}) in page.tags
        assert heading in page.text
    completion = json.loads((folder / "completions.jsonl").read_text().splitlines()[0])[
        "completion"
    ]
    assert completion in page.text
    assert "class_path: rlif_lightning.ClusterVote" in page.text
    import torch

    assert json.loads((folder / "versions.json").read_text())["torch"] == torch.__version__
    assert torch.__version__ in page.text


def test_the_page_stands_alone(reported):
    """Nothing is loaded from elsewhere, nothing is run, and every picture is the PNG that lies
    beside the page.
    """
    _, folder = reported
    page = Page(folder / "report.html")
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    policies = [attributes.get("content", "") for tag, attributes in page.tags if tag == "meta"]
    assert any(policy.startswith("default-src 'none'") for policy in policies)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    files = {path.stem: path.read_bytes() for path in (folder / "report").glob("*.png")}
    wanted = {
        "accuracy",
        "agreement",
        "entropy",
        "length",
        "completeness",
        "reward_vote",
        "reward_certainty",
        "share",
    }
    wanted |= {"log_ratio", "picked", "grad_norm", "learning_rate", "time"}
    assert wanted <= set(files)
    assert all(image.startswith(PNG) for image in images)
    assert sorted(images) == sorted(
        content for name, content in files.items() if name != "overview"
    )


def test_curves_are_those_of_the_log(reported):
    run, folder = reported
    training = read_run(folder).training
    assert training.x.tolist() == [1, 2]
    assert training.columns["policy/entropy"][-1] == pytest.approx(
        float(
            run.trainer.logged_metrics.get("policy/entropy", training.columns["policy/entropy"][-1])
        )
    )
    assert (training.columns["entropy/p10"] <= training.columns["entropy/p90"]).all()


@pytest.mark.slow
@pytest.mark.usefixtures("one_picture")
def test_a_run_that_fails_has_a_report_and_its_own_error(tmp_path):
    broken = "--trainer.callbacks+=test_run_report.Broken"
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(tmp_path, *TINY, "--trainer.callbacks+=RunReport", broken)
    assert "1 rollouts" in Page(tmp_path / "version_0" / "report.html").text


def test_a_run_without_the_csv_logger_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.callbacks+=RunReport", "--trainer.logger=false")
    assert "RunReport reads metrics.csv" in capsys.readouterr().err


def test_the_module_is_a_command(tmp_path, capsys):
    folder = folder_of(tmp_path / "run", "0,0,0.3,0.5,1.0,0.1,", "0,1,0.2,0.6,1.0,0.2,")

    def command() -> None:
        """``python -W error::RuntimeWarning -m callbacks.run_report``, its imports anew."""
        for name in [name for name in sys.modules if name.split(".")[0] == "callbacks"]:
            del sys.modules[name]
        sys.argv[1:] = [str(folder)]
        warnings.simplefilter("error", RuntimeWarning)
        runpy.run_module("callbacks.run_report", run_name="__main__", alter_sys=True)

    code, printed = in_child(command, tmp_path)
    assert code == 0, printed
    assert (folder / "report.html").is_file()
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert f"runs below it: {folder}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_picture")
@pytest.mark.parametrize("place", ["there", "new"])
def test_a_page_may_be_named_by_a_folder(tmp_path, place):
    folder = folder_of(tmp_path / "run", "0,0,1.5")
    (tmp_path / "there").mkdir()
    main([str(folder), "--out", str(tmp_path / place)])
    assert (tmp_path / place / "report.html").is_file()
    assert list((tmp_path / place / "report").glob("*.png"))
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_killed_runs_torn_line_is_left_out_and_told(tmp_path):
    folder = folder_of(tmp_path, "0,0,0.3,0.5,1.0,0.1,", "0,1,0.2,0.6,1.0,0.2,", "0,2,0.1", end="")
    (folder / "completions.jsonl").write_text(
        '{"rollout": 1, "completion": "whole"}\n{"rollout": 2, "comp'
    )
    run = read_run(folder)
    assert run.training.x.tolist() == [1, 2]
    assert run.training.columns["policy/entropy"].tolist() == [0.3, 0.2]
    assert [record["completion"] for record in run.completions] == ["whole"]
    assert [note.split(" is torn")[0] for note in run.notes] == [
        f"The last line of {n}" for n in NAMES
    ]
    main([str(folder)])
    assert "The last line of metrics.csv is torn" in Page(folder / "report.html").text


NAMES = ("metrics.csv", "completions.jsonl")


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        ((), ""),
        pytest.param((), HEADER, marks=pytest.mark.full),
        pytest.param(("0,0,nan,nan,nan,nan,nan",), HEADER, marks=pytest.mark.full),
        (("0,0,inf,-inf,1.0,0.1,0.5",), HEADER),
        (("0,0,0.3,0.5,1.0,0.1,0.5,7,8,9", "0,1", "x,y,z", ",,,,,,"), HEADER),
        (("0,0,0.0", "0,1,\x000.0"), "epoch,step,policy/entropy"),
        (("0,0,0.0",), "epoch,step,policy/grad_norm"),
        (("0,0,5",), "epoch,step,unknown"),
    ],
)
def test_short_and_damaged_logs_still_make_a_page(tmp_path, rows, header):
    folder = folder_of(tmp_path, *rows, header=header)
    for name in ("events.jsonl", "completions.jsonl", "versions.json", "config.yaml"):
        (folder / name).write_bytes(
            b'{"rollout": \xff\n[1]\n{"rollout": null}\n{"rollout": true}\n'
        )
    main([str(folder)])
    assert "Run report" in Page(folder / "report.html").text


def test_evaluations_stand_where_they_were_made(tmp_path):
    """Lightning numbers one inside fit by the rollouts before the last one, and one outside by all
    of them.
    """
    rows = [
        "0,0,,,,,0.1",
        "0,0,0.3,,,,",
        "0,1,0.2,,,,",
        "0,1,,,,,0.2",
        "0,2,0.1,,,,",
        "1,3,,,,,0.3",
    ]
    run = read_run(folder_of(tmp_path, *rows))
    assert run.training.x.tolist() == [1, 2, 3]
    assert run.evaluation.x.tolist() == [0, 2, 3]
    assert run.evaluation.columns["val/accuracy"].tolist() == [0.1, 0.2, 0.3]


def test_a_rolled_back_run_has_a_gap(tmp_path):
    run = read_run(folder_of(tmp_path, "0,0,1,,,,", "0,1,2,,,,", "0,2,3,,,,", "0,1,4,,,,"))
    assert run.training.x.tolist() == [1, 2, 3, 2, 2]
    assert np.isnan(run.training.columns["policy/entropy"]).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]


HOSTILE = "</code><script>alert('1')</script><img src=x onerror=alert(2)>\x1b[31m&amp;\u202e"


def test_everything_untrusted_is_escaped(tmp_path):
    head = "<b>vote</b>"
    folder = folder_of(
        tmp_path, "0,0,0.5,1.0", header=f"epoch,step,reward/{head}/mean,reward/{head}/share"
    )
    record = {"rollout": 1, "index": 0, "prompt": HOSTILE, "completion": HOSTILE, "answer": HOSTILE}
    record |= {
        "scores": {HOSTILE: HOSTILE},
        "advantage": HOSTILE,
        "length": HOSTILE,
        "correct": HOSTILE,
    }
    event = {
        "step": 1,
        "rollout": 1,
        "source": HOSTILE,
        "kind": HOSTILE,
        "message": HOSTILE,
        "values": {},
    }
    (folder / "completions.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "config.yaml").write_text(f"a: |\n  {HOSTILE}\n")
    main(
        [
            f"{HOSTILE.replace('=', '')}={folder}",
            f"_$x_^{{={folder}",
            "--out",
            str(tmp_path / "out.html"),
        ]
    )
    page = Page(tmp_path / "out.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert all(
        attributes["src"].startswith("data:image/png")
        for tag, attributes in page.tags
        if tag == "img"
    )
    assert page.text.count("<script>alert('1')</script>") >= 6


@pytest.mark.usefixtures("one_picture")
def test_events_are_listed_with_their_numbers(tmp_path):
    folder = folder_of(tmp_path, *(f"0,{step},0.3,0.5,1.0,0.1," for step in range(5)))
    events = [
        {
            "step": 12,
            "rollout": 3,
            "source": "CollapseGuard",
            "kind": "rollback",
            "message": "went back",
            "values": {},
        },
        {
            "step": 4,
            "rollout": 1,
            "source": "KLCovScheduler",
            "kind": "schedule",
            "message": "0.05",
            "values": {},
        },
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    main([str(folder)])
    text = Page(folder / "report.html").text
    assert re.search(r"11KLCovSchedulerschedule0\.05\s*23CollapseGuardrollbackwent back", text)
    assert "2 marked events" in text


@pytest.mark.slow
def test_events_are_drawn_where_they_were(tmp_path):
    folder = folder_of(tmp_path, *(f"0,{step},0.3,0.5,1.0,0.1," for step in range(5)))
    run, pictures = read_run(folder), []
    panel = next(panel for panel in panels_of([run]) if panel.name == "entropy")
    for events in ([], [("schedule", 2)], [("schedule", 3)], [("rollback", 2)], [("rollback", 3)]):
        marked = replace(
            run, events=[{"rollout": rollout, "kind": kind} for kind, rollout in events]
        )
        pictures.append(draw_panel(panel, [marked]))
    assert len(set(pictures)) == 5


def test_stares_gate_and_weights_are_drawn(tmp_path):
    """A run without them has no such picture."""
    header = "epoch,step,stare/gate,stare/positive_weight,stare/negative_weight"
    lines = ("0,0,1.0,1.1,0.9", "0,1,0.0,1.0,1.0")
    run = read_run(folder_of(tmp_path / "stare", *lines, header=header))
    panels = {panel.name: panel for panel in panels_of([run])}
    drawn = {name: [each.column for each in panel.drawn([run])] for name, panel in panels.items()}
    weights = ["stare/positive_weight", "stare/negative_weight"]
    assert drawn == {"stare_gate": ["stare/gate"], "stare_weights": weights}
    assert all(draw_panel(panel, [run]).startswith(PNG) for panel in panels.values())
    other = read_run(folder_of(tmp_path / "other", "0,0,0.3,0.5,1.0,0.1,"))
    assert not [panel for panel in panels_of([other]) if panel.name.startswith("stare")]


@pytest.mark.usefixtures("one_picture")
def test_several_runs_are_compared(tmp_path):
    left = folder_of(tmp_path / "left", "0,0,0.3,0.5,1.0,0.1,", "0,0,,,,,0.25")
    right = folder_of(tmp_path / "right", "0,0,0.4,0.5,1.0,0.1,", "0,0,,,,,0.75")
    (left / "config.yaml").write_text("seed_everything: 0\nmodel: {optimizer: {lr: 0.1}}\n")
    (right / "config.yaml").write_text("seed_everything: 0\nmodel: {optimizer: {lr: 0.2}}\n")
    main([f"low={left}", f"high={right}", "--out", str(tmp_path / "both.html"), "--title", "Two"])
    text = Page(tmp_path / "both.html").text
    assert "25.0 %" in text
    assert "75.0 %" in text
    assert re.search(r"settinglowhighmodel\.optimizer\.lr0\.10\.2", text)
    assert "seed_everything01" not in text
    assert (tmp_path / "both" / "overview.png").read_bytes().startswith(PNG)


@pytest.mark.usefixtures("as_shipped")
def test_an_evaluations_interval_is_drawn(tmp_path):
    header, pictures = "epoch,step,val/accuracy,val_low/accuracy,val_high/accuracy", []
    for name, low in (("narrow", "0.24"), ("wide", "0.1")):
        run = read_run(
            folder_of(tmp_path / name, f"0,0,0.25,{low},0.3", f"0,1,0.25,{low},0.3", header=header)
        )
        (accuracy,) = panels_of([run])
        pictures.append(draw_panel(accuracy, [run]))
    assert len(set(pictures)) == 2


def test_accuracy_in_training_is_the_gold_heads(tmp_path):
    folder = folder_of(tmp_path, "0,0,0.5", header="epoch,step,reward/truth/mean")
    (folder / "config.yaml").write_text(
        "model: {rewards: {truth: {head: {class_path: rlif_lightning.GoldAnswer}}}}\n"
    )
    accuracy = next(panel for panel in panels_of([read_run(folder)]) if panel.name == "accuracy")
    assert [series.column for series in accuracy.drawn([read_run(folder)])] == ["reward/truth/mean"]


def test_many_rewards_leave_room_for_their_curves(tmp_path, as_shipped):
    """The names of thirty took the whole picture, and matplotlib gave up its layout."""
    heads = [f"reward/a_head_of_my_own_{number}/share" for number in range(30)]
    header = ",".join(["epoch", "step", *heads])
    rows = [",".join(["0", str(step), *["0.03"] * 30]) for step in (1, 2)]
    run = read_run(folder_of(tmp_path / "version_0", *rows, header=header))
    [share] = [panel for panel in panels_of([run]) if panel.name == "share"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_panel(share, [run]).startswith(PNG)
        assert draw_panel(share, [run, replace(run, label="again")]).startswith(PNG)
        assert draw_overview([share], [run]).startswith(PNG)
