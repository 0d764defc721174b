"""The command line: ``python -m rlif_lightning fit | validate | test | predict | preflight --config FILE``.

LightningCLI does the work. Added here: short class names for YAML, the links between model and data, the run's loggers,
the table before / after training, predictions as JSONL, and one clear line instead of a traceback where the user can
put it right.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from rich.table import Table

import callbacks
import rlif_lightning.rewards
from rlif_lightning.advantages import Advantage
from rlif_lightning.module import RLIFModule
from rlif_lightning.objectives import Objective
from rlif_lightning.policy import resolve_model
from rlif_lightning.prompts import PromptData
from rlif_lightning.trainer import RLIFTrainer

# Settings that come in kinds: YAML names the class.
set_parsing_settings(subclasses_enabled=[Advantage, Objective])

# Lightning's warnings about what is on purpose here: prompts lie tokenised in memory, and a checkpoint holds the
# parameters after the optimiser's step.
EXPECTED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",
    "Using ModelCheckpoint with manual optimization and every_n_train_steps",
    "Couldn't infer the batch indices fetched from your dataloader",
    "The dirpath has changed",  # a resumed run logs into a folder of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
PERCENT = ("accuracy", "pass@", "maj@", "greedy_accuracy", "ended", "parseable", "agreement", "diversity")


class PredictionFile(BasePredictionWriter):
    """Writes each batch's completion records to ``predictions.jsonl`` (one file per rank) in the run's folder."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def path(self, trainer: Trainer) -> Path:
        """This rank's file."""
        suffix = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        return Path(trainer.log_dir or trainer.default_root_dir) / f"predictions{suffix}.jsonl"

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open a new file; the run's folder is new, so nothing is overwritten."""
        self.path(trainer).parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path(trainer).open("x", encoding="utf-8")

    def write_on_batch_end(
        self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
    ) -> None:
        """Append one batch."""
        self.file.writelines(json.dumps(record) + "\n" for record in prediction)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close the file and say where it is."""
        self.file.close()
        if trainer.is_global_zero:
            print(f"completions: {self.file.name}")


class RLIFCLI(LightningCLI):
    """LightningCLI for :class:`RLIFModule` and :class:`PromptData`."""

    before: dict[str, float] | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and ``preflight``."""
        return {**LightningCLI.subcommands(), "preflight": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links between model and data, so that nothing is said twice."""
        parser.add_argument(
            "--compare", type=bool, default=True, help="Evaluate before and after fit and print both as a table."
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_as_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_as_seed)
        parser.link_arguments("data.group_size", "model.group_size")
        parser.link_arguments("data.answer_column", "model.answer_column")
        parser.link_arguments("model.policy.name", "data.tokenizer", compute_fn=resolve_model)
        parser.link_arguments("model.policy.trust_remote_code", "data.trust_remote_code")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Defaults that depend on others: loggers in a new ``version_N`` folder, and a checkpoint after each epoch."""
        given = self._get(self.config_init, "trainer.logger")
        if given is None or given is True:
            root = self._get(self.config_init, "trainer.default_root_dir")
            table = CSVLogger(root, name="", flush_logs_every_n_steps=1)
            kwargs["logger"] = [table, TensorBoardLogger(root, name="", version=table.version)]
        saves = self._get(self.config_init, "trainer.enable_checkpointing") is not False
        callbacks_given = self._get(self.config_init, "trainer.callbacks") or []
        if saves and not any(isinstance(callback, ModelCheckpoint) for callback in callbacks_given):
            self.trainer_defaults["callbacks"].append(ModelCheckpoint(save_on_train_epoch_end=True))
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Measure the starting policy."""
        self.before = self._measure() if self._compares else None

    def after_fit(self) -> None:
        """Measure again and print both."""
        if self.before is not None and not self.trainer.interrupted:
            print_comparison(self.before, self._measure(), self.trainer)

    @property
    def _compares(self) -> bool:
        config = self.config["fit"]
        validates = config.trainer.limit_val_batches != 0 and not config.trainer.fast_dev_run
        return config.compare and config.ckpt_path is None and validates

    def _measure(self) -> dict[str, float]:
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        return {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}


def _as_seed(value: int | bool) -> int:
    return 0 if isinstance(value, bool) else value


def print_comparison(before: dict[str, float], after: dict[str, float], trainer: Trainer) -> None:
    """Print the evaluation before and after training on rank 0."""
    folder = trainer.log_dir  # a collective
    if not trainer.is_global_zero:
        return
    table = Table(title="Held-out problems, before and after training", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name, old in before.items():
        new, short = after[name], name.removeprefix("val/")
        scale, unit = (100.0, " %") if short.startswith(PERCENT) else (1.0, "")
        digits = 1 if scale == 100.0 or short == "length" else 3
        cells = (f"{scale * old:.{digits}f}{unit}", f"{scale * new:.{digits}f}{unit}")
        table.add_row(short.replace("_", " "), *cells, f"{scale * (new - old):+.{digits}f}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"logs, metrics.csv and config: {folder}", soft_wrap=True, highlight=False)


def main(args: list[str] | None = None) -> RLIFCLI:
    """Run the command line; ``args`` replaces ``sys.argv[1:]``.

    Raises:
        SystemExit: 2 after a mistake in the settings or the data, told in one line.
    """
    torch.set_float32_matmul_precision("high")
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    try:
        return RLIFCLI(
            RLIFModule,
            PromptData,
            args=args,
            trainer_class=RLIFTrainer,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "callbacks": [PredictionFile()],
            },
            save_config_kwargs={"overwrite": True},
        )
    except (ValueError, TypeError) as error:
        ours = _ours(error)
        if ours is None:
            raise
        print(f"error: {ours}", file=sys.stderr)
        raise SystemExit(2) from error


def command() -> None:
    """The script ``rlif`` and ``python -m rlif_lightning``: as :func:`main`, without a result for the shell."""
    main()


def _ours(error: BaseException | None) -> BaseException | None:
    """The error, or what caused it, that one of our own checks raised; None for a bug somewhere below."""
    packages = tuple(str(Path(package.__file__ or "").parent) for package in (rlif_lightning, callbacks))
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].filename.startswith(packages):
            return error
        error = error.__cause__  # jsonargparse wraps what the constructor of a callback raises
    return None
