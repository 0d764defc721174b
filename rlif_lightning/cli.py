"""The command line: ``rlif fit | validate | test | predict | preflight --config FILE``.

(``status RUN_DIR`` is ``running/status.py``, which imports nothing heavy.)

LightningCLI does the work. Added here: short class names for YAML, the links between model and
data, the run's loggers, the tables of evaluations, and one clear line instead of a traceback where
the user can put it right.
"""

from __future__ import annotations

import errno
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import callbacks
import rlif_lightning.data.training_problems
import rlif_lightning.environments.pool
import rlif_lightning.environments.problems
import rlif_lightning.learning.baselines
import rlif_lightning.learning.distil
import rlif_lightning.learning.entropy_minimisation
import rlif_lightning.learning.ratio_objectives
import rlif_lightning.learning.supervised
import rlif_lightning.rewards
import rlif_lightning.rollout.vllm_engine  # noqa: F401
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.environments.pool import FailedEpisodes
from rlif_lightning.evaluation.files import EvaluationFiles
from rlif_lightning.evaluation.prediction_files import PredictionFiles, Predictions
from rlif_lightning.evaluation.report import Report, print_comparison, print_report
from rlif_lightning.model.loading import resolve_model
from rlif_lightning.module import RLIFModule
from rlif_lightning.rollout.vllm_http import VLLMError
from rlif_lightning.running.checkpoint_faults import expected_of
from rlif_lightning.running.checkpoint_search import resolve_checkpoint
from rlif_lightning.running.endings import FAILED, MISTAKEN, own_mistake
from rlif_lightning.running.help_page import ABOUT, PROGRAM, USAGE
from rlif_lightning.running.parsing import Parser, with_weighted_rewards
from rlif_lightning.running.quiet import silence
from rlif_lightning.running.run_checkpoints import RunCheckpoints, run_checkpoints
from rlif_lightning.running.run_folder import check_place
from rlif_lightning.running.run_settings import LINKED
from rlif_lightning.running.stop_signals import INTERRUPTED, exit_on_request
from rlif_lightning.running.strategies import check_readable, check_strategy
from rlif_lightning.trainer import RLIFTrainer

NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
)  # what a disk says that takes no more

# What Lightning says of a logger whose package is not installed, amid jsonargparse's types.
MISSING_PACKAGE = re.compile(r"Requirement '[^']+' not met.*")
SEEDS = ("model.seed", "data.seed")
# Words that would have no effect -> the subcommands for which they are meant, first the one that
# uses them. Every subcommand takes them, so that all can read one file; preflight has fit's words.
USED_BY = {"--compare=true": ("fit", "preflight"), "--predictions": ("predict",)}


class RLIFCLI(LightningCLI):
    """LightningCLI for :class:`RLIFModule` and :class:`PromptData`."""

    trainer: RLIFTrainer
    before: Report | None = None
    checkpoint: Path | None = None
    continues: bool = False
    named: str | None = None
    words: list[str]

    def __init__(self, *classes: Any, args: Any = None, **settings: Any) -> None:
        """Build the parser of the subcommand that ``args`` begins with, or those of all.

        The parser of one subcommand takes about 50 ms.
        """
        words, known = sys.argv[1:] if args is None else args, self.subcommands()
        if isinstance(words, list) and words and words[0] in known:
            self.named, self.words = words[0], words[1:]
            setattr(self, "subcommands", lambda: {words[0]: known[words[0]]})  # noqa: B010
        page = {"prog": PROGRAM, "description": ABOUT}
        usages = {name: {"usage": USAGE.format(name)} for name in self.subcommands()}
        super().__init__(*classes, args=args, parser_kwargs=page | usages, **settings)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse with the parser of the named subcommand alone: the whole one parses twice."""
        # jsonargparse prints where the whole parser has parsed.
        prints = self.named and any(word.startswith("--print_config") for word in self.words)
        if self.named is None or prints:
            return super().parse_arguments(parser, args)
        config = self._subcommand_parsers[self.named].parse_args(self.words)
        self._refuse_mistakes(parser, config)
        self.config = Namespace(subcommand=self.named, **{self.named: config})

    def _refuse_mistakes(self, parser: LightningArgumentParser, config: Namespace) -> None:
        """Refuse what the subcommand does not use, and a seed that is none."""
        if config.fork_from is not None and self.named != "fit":
            parser.error(f"fork_from={config.fork_from}: only fit uses it; name it as ckpt_path")
        seed = config.seed_everything
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            parser.error(f"seed_everything={seed}: a seed is at least 0 and below 2**32")
        pairs = itertools.pairwise([*self.words, ""])
        words = [f"{word}={after}" if word == "--compare" else word for word, after in pairs]
        for word, (said, users) in itertools.product(words, USED_BY.items()):
            if word.lower().startswith(said) and self.named not in users:
                parser.error(f"{word}: {self.named} does not use it, {users[0]} does; leave it out")

    def before_instantiate_classes(self) -> None:
        """Write rewards that were given as heads alone in full."""
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        config.model.rewards = with_weighted_rewards(config.model.rewards)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our arguments, and link those of model and data, so that nothing is said twice."""
        parser.add_argument(
            "--compare",
            type=bool,
            default=True,
            help="Evaluate before and after fit and print both as a table.",
        )
        parser.add_argument(
            "--fork_from",
            type=str | None,
            default=None,
            help="With fit: a checkpoint of which a new run takes the policy's weights. Optimiser,"
            " counters, order of the data and callbacks begin anew.",
        )
        parser.add_class_arguments(Predictions, "predictions")
        for target in SEEDS:
            parser.link_arguments("seed_everything", target, compute_fn=_as_seed)
        for target, source in LINKED.items():
            if target not in SEEDS:
                compute = resolve_model if target == "data.tokenizer" else None
                parser.link_arguments(source, target, compute_fn=compute)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Check where the run goes, and add the callbacks of a run."""
        check_strategy(self._get(self.config_init, "trainer.strategy") or "auto")
        check_place(
            "trainer.default_root_dir",
            self._get(self.config_init, "trainer.default_root_dir") or ".",
        )
        saves = self._get(self.config_init, "trainer.enable_checkpointing") is not False
        callbacks_given = self._get(self.config_init, "trainer.callbacks") or []
        if saves and not any(isinstance(callback, RunCheckpoints) for callback in callbacks_given):
            self.trainer_defaults["callbacks"].append(RunCheckpoints())
        if not any(isinstance(callback, callbacks.SamplerGap) for callback in callbacks_given):
            self.trainer_defaults["callbacks"].append(callbacks.SamplerGap())
        if self.subcommand == "predict":
            files = PredictionFiles(self._get(self.config_init, "predictions"))
            self.trainer_defaults["callbacks"].append(files)
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands and ``preflight``, without arguments fixed here."""
        decided = {
            "fit": {"fork_from"},
            "validate": {"verbose"},
            "test": {"verbose"},
            "predict": {"return_predictions"},
        }
        known = {
            name: taken | decided.get(name, set())
            for name, taken in LightningCLI.subcommands().items()
        }
        return {**known, "preflight": {"model", "datamodule"}}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Our tables have the intervals; a million predictions are not for memory.
        decided: dict[str, dict[str, Any]] = {
            "fit": {"fork_from": self.trainer.fork_from},
            "validate": {"verbose": False},
            "test": {"verbose": False},
            "predict": {"return_predictions": False},
        }
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | decided.get(subcommand, {})
        return kwargs | {"ckpt_path": self.checkpoint, "weights_only": True}

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would look for hyper-parameters in a checkpoint here."""

    def after_instantiate_classes(self) -> None:
        """Find the checkpoint, which must fit the model, before any weights are loaded."""
        if not self.config.get("subcommand"):
            return
        config = self.config[self.config.subcommand]
        root, wanted = Path(self.trainer.default_root_dir), config.ckpt_path
        expected = None if wanted is None else expected_of(self.model)
        if config.fork_from is not None:
            self.trainer.set_fork(config.fork_from, None if wanted == "auto" else wanted)
        self.checkpoint = resolve_checkpoint(wanted, root, expected)
        if self.checkpoint is not None:
            self.trainer.set_fork(None)
        check_readable(self.checkpoint, self.trainer.strategy)
        self.continues = wanted in ("auto", "last")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes 1 of it
                raise SystemExit(INTERRUPTED) from None
            raise

    def before_fit(self) -> None:
        """Measure the starting policy."""
        for callback in run_checkpoints(self.trainer):
            callback.continues = self.continues
        if self._compares and self.checkpoint is None:
            # What fit would refuse is refused before the first evaluation, which may take hours.
            self.model.fits_next = self.datamodule.fits_next = True
            self.before = self._measure()
            self.model.fits_next = self.datamodule.fits_next = False

    def after_fit(self) -> None:
        """Measure again and print both; a resumed run, which has begun elsewhere, the end alone."""
        trained = "policy/learning_rate" in self.trainer.callback_metrics
        resumed = self.checkpoint is not None and self._compares and trained
        if self.trainer.interrupted or (self.before is None and not resumed):
            return
        after, folder = self._measure(), self.trainer.log_dir
        if self.trainer.is_global_zero and self.before is not None:
            print_comparison(self.before, after, folder)
        elif self.trainer.is_global_zero:
            print_report(after, "Held-out problems, after training")

    def after_validate(self) -> None:
        """Print the figures with their intervals."""
        self._print_figures("Validation")

    def after_test(self) -> None:
        """Print as after validation."""
        self._print_figures("Test")

    def _print_figures(self, title: str) -> None:
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero:
            print_report(self.model.report, title)
            print(f"evaluation.json and completions: {folder}")

    @property
    def _compares(self) -> bool:
        config = self.config["fit"]
        validates = config.trainer.limit_val_batches != 0 and not config.trainer.fast_dev_run
        return config.compare and validates

    def _measure(self) -> Report:
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        return self.model.report


def _as_seed(value: int | bool) -> int:
    return 0 if isinstance(value, bool) else value


def main(args: list[str] | None = None) -> RLIFCLI:
    """Run the command line; ``args`` replaces ``sys.argv[1:]``.

    Raises:
        SystemExit: 2 after a mistake in the settings or the data, 1 where the disk is full, or a
            vLLM server or environments fail; stderr has one line.
    """
    torch.set_float32_matmul_precision("high")
    silence()
    try:
        return RLIFCLI(
            RLIFModule,
            PromptData,
            args=args,
            trainer_class=RLIFTrainer,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "enable_model_summary": False,  # the header says what is trained
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "callbacks": [EvaluationFiles()],
            },
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            auto_configure_optimizers=False,  # model.optimizer is the only one
            load_from_checkpoint_support=False,  # it dumps all settings; nothing here reads them
        )
    except (ValueError, TypeError) as error:
        missing = MISSING_PACKAGE.search(str(error))
        said = own_mistake(error) if missing is None else missing[0]
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(MISTAKEN) from error
    except (VLLMError, FailedEpisodes) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error}; make room, and repeat with --ckpt_path=auto", file=sys.stderr)
        raise SystemExit(FAILED) from error


def command() -> None:
    """Run the script ``rlif``: as :func:`main`, without a result for the shell."""
    exit_on_request()
    main()
