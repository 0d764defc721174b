"""metrics.csv, the report and the guard work beside any logger, whatever its place in the list."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.command_line import refused
from harness.runs import BASE, adding, fit
from rlif_lightning.running.metrics_csv import MetricsTable, read_logged, with_table


class Remote(Logger):
    """A logger without files, as of a service on the web."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[int | None]] = {}

    @property
    def name(self) -> str:
        return "remote"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics, step=None) -> None:
        for name in metrics:
            self.seen.setdefault(name, []).append(step)

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        pass


def loggers(folder, *names: str) -> str:
    settings = {"save_dir": str(folder), "name": "mine"}
    paths = {
        "csv": {"class_path": "CSVLogger", "init_args": settings},
        "board": {"class_path": "TensorBoardLogger", "init_args": settings},
        "remote": {"class_path": "test_loggers.Remote"},
    }
    return f"--trainer.logger={json.dumps([paths[name] for name in names])}"


@pytest.mark.full  # the table goes first: below; test_run_report.py draws
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("remote",), id="another alone", marks=pytest.mark.full),
        pytest.param(("board", "remote", "csv"), id="csv last"),
    ],
)
def test_the_report_and_the_guard_work_beside_any_logger(tmp_path, names):
    run = fit(tmp_path, loggers(tmp_path, *names), adding("RunReport"), adding("CollapseGuard"))
    folder = Path(str(run.trainer.loggers[0].log_dir))
    assert isinstance(run.trainer.loggers[0], CSVLogger)
    assert {type(each).__name__ for each in run.trainer.loggers} >= {"Remote"}
    figures = read_logged(folder / "metrics.csv")
    assert {"policy/entropy", "guard/alarms"} <= {*figures.columns}
    assert len(figures.rows) == 2
    page = (folder / "report.html").read_text()
    assert "Ended: finished</b> after rollout 2 of 2 planned (exit code 0)" in page
    assert "seed 0, policy rlif-arithmetic, rewards 0.5 x certainty + 0.5 x vote" in page
    assert page.count("<table>") == page.count('<div class="scroll"><table>') > 0
    remote = next(each for each in run.trainer.loggers if isinstance(each, Remote))
    assert remote.seen["policy/entropy"] == [0, 1]


def test_a_table_goes_first_and_nothing_twice(tmp_path):
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    assert with_table([board, table], tmp_path) == [table, board]
    assert with_table(table, tmp_path) == [table]
    made, last = with_table(board, tmp_path)
    assert isinstance(made, MetricsTable)
    assert last is board


@pytest.mark.full  # test_completion_writer.py reads TensorBoard's steps
def test_tensorboard_counts_the_rollouts_that_are_done(tmp_path):
    """Two rollouts, an evaluation after each: all stand at 1 and 2."""
    run = fit(tmp_path, "--trainer.val_check_interval=1", "--trainer.check_val_every_n_epoch=1")
    board = EventAccumulator(run.trainer.log_dir).Reload()
    for name in ("policy/entropy", "val/accuracy"):
        assert [each.step for each in board.Scalars(name)] == [1, 2]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_whose_package_is_missing_is_told_in_one_line(tmp_path, capsys):
    where = f"--trainer.default_root_dir={tmp_path}"
    line = refused(capsys, "fit", *BASE, where, "--trainer.logger=WandbLogger")
    assert line.startswith("error: Requirement 'wandb")
    assert "pip install" in line
