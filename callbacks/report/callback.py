"""RunReport: a report of the run in its folder; ``write_report`` makes one of any runs."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

from callbacks.report.read import Run, read_run
from rlif_lightning.running.own_files import disk_errors_printed
from rlif_lightning.running.run_folder import naming, run_folder
from rlif_lightning.whole_files import replaced

PACKAGES = ("rlif-lightning", "torch", "lightning", "transformers", "peft", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and packages that numbers may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_report(runs: list[Run], out: Path, title: str) -> None:
    """Write the page to ``out``, and the pictures into the folder beside it.

    There is a PNG for each panel, and ``overview.png``.

    The folder has the page's name without its ending. Files are replaced as wholes.
    """
    # matplotlib takes a second to import; a run needs it at its end only.
    from callbacks.report.figures import draw_overview, draw_panel
    from callbacks.report.page import page
    from callbacks.report.panels import panels_of

    panels = panels_of(runs)
    images = {panel.name: draw_panel(panel, runs) for panel in panels}
    pictures = out.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    overview = {"overview": draw_overview(panels, runs)} if panels else {}
    for name, png in (images | overview).items():
        _replace(pictures / f"{name}.png", png)
    made_with = f"rlif-lightning {versions()['rlif-lightning']}"
    _replace(out, page(title, runs, panels, images, made_with).encode("utf-8", errors="replace"))


def _replace(path: Path, content: bytes) -> None:
    with naming(path), replaced(path) as unfinished:
        unfinished.write_bytes(content)


class RunReport(Callback):
    """Writes ``report.html`` and PNGs in ``report/`` into the run's folder when training ends.

    Rank 0 writes it at the end, after an exception or Ctrl-C too, and again after an evaluation
    that follows, so that the figures "after" are in it. `fast_dev_run` logs nothing, so it has no
    report. The report is made from the folder's files: ``metrics.csv`` of the CSV logger (which the
    command line adds), ``config.yaml``, ``events.jsonl``, and the files of CompletionWriter. A full
    disk gives a warning, and the run ends as it would have. For a run that was killed or is still
    running, and to compare several:
    ``python -m callbacks.run_report RUN_DIR [RUN_DIR ...]``.
    """

    def __init__(self) -> None:
        self.trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder (a collective) and note the versions.

        Raises:
            ValueError: no logger writes metrics.csv.
        """
        if stage != "fit":
            return
        writers = [each for each in trainer.loggers if isinstance(each, CSVLogger | DummyLogger)]
        if not writers:
            raise ValueError(
                f"RunReport reads metrics.csv, but trainer.logger={trainer.loggers} has no"
                " CSVLogger; leave trainer.logger unset, use RLIFTrainer, or add a CSVLogger"
            )
        self.folder = run_folder(trainer)
        if trainer.is_global_zero:
            with disk_errors_printed("the versions of packages could not be written down"):
                self.folder.mkdir(parents=True, exist_ok=True)
                _replace(self.folder / "versions.json", json.dumps(versions(), indent=1).encode())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to report from here on."""
        self.trained = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the report after training, and again after the evaluation that follows it."""
        if stage in ("fit", "validate"):
            self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report a run that failed as well."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not (self.trained and trainer.is_global_zero):
            return
        with disk_errors_printed(f"the report of {self.folder} could not be written"):
            for logger in trainer.loggers:
                logger.save()
            if not (self.folder / "metrics.csv").is_file():
                print("RunReport: no report, since nothing was logged")
                return
            write_report(
                [read_run(self.folder)], self.folder / "report.html", f"Run report: {self.folder}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the report is made from files."""
        return {}
