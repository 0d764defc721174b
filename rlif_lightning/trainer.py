"""RLIFTrainer: Lightning's Trainer with one more method, ``preflight``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from rlif_lightning.answers.checkers import AnswerChecker
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.evaluation.files import EvaluationFiles
from rlif_lightning.evaluation.label_checks import check_labels
from rlif_lightning.evaluation.preflight import Findings, examine
from rlif_lightning.evaluation.preflight_memory import MemoryNotice
from rlif_lightning.evaluation.preflight_report import (
    print_episodes,
    print_findings,
    print_judges,
    write_findings,
)
from rlif_lightning.evaluation.preflight_sample import PreflightBatches, all_rank_records
from rlif_lightning.records import value_at
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.running.context_checks import check_problems
from rlif_lightning.running.endings import RunEnd
from rlif_lightning.running.fork import Fork, checked_fork
from rlif_lightning.running.header import RunHeader
from rlif_lightning.running.metrics_csv import usual_loggers, with_table
from rlif_lightning.running.own_files import OwnFiles
from rlif_lightning.running.progress import RolloutBar
from rlif_lightning.running.resumed_settings import ResumedSettings
from rlif_lightning.running.run_checkpoints import RunCheckpoints
from rlif_lightning.running.run_folder import run_folder
from rlif_lightning.running.run_loop import (
    EpochLoopWithStepEnd,
    RunLoop,
    refuse_duplicate_callbacks,
)
from rlif_lightning.running.setup_checks import check_precision, check_trainer
from rlif_lightning.running.stock_callbacks import refuse_unusable
from rlif_lightning.running.stop_signals import StopSignals
from rlif_lightning.running.texts import refuse_without_rewards

if TYPE_CHECKING:
    from rlif_lightning.module import RLIFModule

# A rollout takes longer than a logging line, and the loaders share prompts themselves.
DEFAULTS = {"log_every_n_steps": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False}


class RLIFTrainer(Trainer):
    """A trainer that saves at the ends of steps, stops on a signal, and has ``preflight``."""

    def __init__(
        self, *args: Any, callbacks: list[Callback] | Callback | None = None, **kwargs: Any
    ) -> None:
        check_precision(kwargs.get("precision"))
        check_trainer(kwargs)
        kwargs = {**DEFAULTS, **kwargs}
        if (folder := kwargs.get("default_root_dir")) is not None:
            kwargs["default_root_dir"] = os.path.expanduser(folder)  # for loggers as well
        refuse_duplicate_callbacks(callbacks if isinstance(callbacks, list) else [])
        given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        if not kwargs.get("barebones"):
            given = _with_usual_callbacks(given, kwargs)
            kwargs["logger"] = _loggers(kwargs)
        super().__init__(*args, callbacks=given, **kwargs)
        own = [RunEnd(), ResumedSettings(), Fork(), RunHeader()]
        self.callbacks: list[Callback] = [*own, *self.callbacks]
        steps = EpochLoopWithStepEnd(
            self, self.min_steps, self.max_steps
        )  # these limits are those of the loop that is replaced
        self.fit_loop = RunLoop(self, self.min_epochs, self.max_epochs)
        self.fit_loop.epoch_loop = steps
        self._signal_connector = self.stop_signals = StopSignals(self)
        self.own_files: OwnFiles | None = None  # of the run that is being trained
        self.fork_from: Path | None = None  # where the policy's first weights are read from

    def _run(self, model: Any, ckpt_path: Any = None, weights_only: bool | None = None) -> Any:
        """As Lightning, which does not tell its callbacks what checkpoint a run goes on from."""
        self.ckpt_of_run = None if ckpt_path is None else str(ckpt_path)
        if self.state.fn == TrainerFn.FITTING:
            refuse_unusable(self.callbacks)
            self.own_files = None
            self.source = None if ckpt_path is None else Path(ckpt_path)
        return super()._run(model, ckpt_path, weights_only)

    def _teardown(self) -> None:
        """Drop what was drawn ahead, then as Lightning, at every end: an exception's as well."""
        module: Any = self.lightning_module
        if isinstance(engine := getattr(module, "engine", None), RolloutEngine):
            engine.discard_ahead()
        super()._teardown()

    def set_fork(self, fork_from: str | Path | None, ckpt_path: Any = None) -> None:
        """Begin the next run, and its first evaluation, with the weights in a checkpoint."""
        self.fork_from = checked_fork(fork_from, ckpt_path, self.fork_from)

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        fork_from: str | Path | None = None,
    ) -> None:
        """Train, as Lightning's Trainer does, or from the weights of another run.

        Args:
            model: the module.
            train_dataloaders: as in Lightning's Trainer.
            val_dataloaders: as in Lightning's Trainer.
            datamodule: the data.
            ckpt_path: a checkpoint that training goes on from. The command line also takes `auto`
                (the newest one under trainer.default_root_dir, or none), `last` and `best`.
            weights_only: whether the checkpoint may hold nothing but tensors and plain values.
            fork_from: a checkpoint of which a new run takes the policy's weights. Optimiser,
                counters, order of the data and callbacks begin anew, and a reference model is that
                of model.policy.name. With ckpt_path=auto the weights are taken where there is no
                checkpoint to go on from.

        Raises:
            ValueError: a checkpoint that cannot be used; names it and the remedy.
        """
        self.set_fork(fork_from, ckpt_path)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def preflight(
        self,
        model: RLIFModule,
        datamodule: PromptData,
        prompts: int = 64,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Findings:
        """Sample groups from the starting policy and judge whether the rewards can work.

        It trains nothing. Before it loads the policy it prints whether a run would fit in memory,
        then a table with a verdict for each reward head. It writes ``preflight.json`` and the
        completions as ``preflight.jsonl``.

        Args:
            model: the module.
            datamodule: the data.
            prompts: training problems that a group is sampled for, drawn at random from the first
                seed.
            ckpt_path: a checkpoint whose policy is examined instead of the starting one.
            weights_only: whether the checkpoint may hold nothing but tensors and plain values.

        Raises:
            ValueError: fewer prompts than processes, or none; or an objective without rewards.
        """
        refuse_without_rewards(model.objective)
        if prompts < self.world_size:
            raise ValueError(
                f"prompts={prompts} must be at least 1 for each of the {self.world_size} processes"
            )
        datamodule.trainer, group_size = self, datamodule.group_size
        model.read_settings_of(datamodule)

        def check(problems: EncodedSplit) -> None:
            check_labels(datamodule, model.evaluator, model.rewards, "fit")
            model.rewards.check(problems, group_size)
            if (train := datamodule.split("train")) is not None:
                check_problems(model, train, model.run_models())

        batches = PreflightBatches(datamodule, prompts, model.seed, check)
        notice, callbacks = MemoryNotice(datamodule), self.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        self.callbacks = [*callbacks, notice]
        try:
            made: Any = self.predict(model, batches, ckpt_path=ckpt_path, weights_only=weights_only)
        finally:
            self.callbacks = callbacks
        records = all_rank_records([record for batch in made for record in batch])
        gold = _gold_answers(model, batches, len(records) // group_size)
        findings = _findings(model, records, gold, group_size)
        path = run_folder(self) / "preflight.json"
        if self.is_global_zero:
            memory = None if notice.need is None else notice.need.parts
            write_findings(findings, records, path, memory)
            print_findings(findings)
            print_episodes(records)
            print_judges(records, datamodule.prompts_per_rollout * group_size)
            print(f"figures, and the completions as .jsonl: {path}")
        return findings


def _findings(
    model: RLIFModule, records: list[dict[str, Any]], gold: Any, group_size: int
) -> Findings:
    checker = model.evaluator.checker
    answers = [checker.answer(record["completion"]) for record in records]
    rewards = {n: it for n, it in model.rewards.settings.items() if it.head.gives_scores}
    weights = {name: reward.weight for name, reward in rewards.items()}
    equivalence = getattr(checker, "equivalence", "exact")
    return examine(records, answers, gold, weights, group_size, equivalence)


def _with_usual_callbacks(given: list[Callback], settings: dict[str, Any]) -> list[Callback]:
    """Return a run's callbacks with what saves, watches and measures it, unless others do."""
    usual: dict[str, tuple[type[Callback], type[Callback]]] = {
        "enable_progress_bar": (ProgressBar, RolloutBar),
        "enable_checkpointing": (Checkpoint, RunCheckpoints),
    }
    added: list[Callback] = [
        ours()
        for setting, (kind, ours) in usual.items()
        if settings.get(setting) is not False
        and not any(isinstance(callback, kind) for callback in given)
    ]
    writes = settings.get("logger") is not False
    if writes and not any(isinstance(callback, EvaluationFiles) for callback in given):
        added.append(EvaluationFiles())
    return [*given, *added]


def _loggers(settings: dict[str, Any]) -> Any:
    """Return a run's loggers, one of which writes metrics.csv, unless there are to be none."""
    given, folder = settings.get("logger"), settings.get("default_root_dir")
    if given is False or settings.get("fast_dev_run"):
        return given
    return usual_loggers(folder) if given in (None, True) else with_table(given, folder)


def _gold_answers(
    model: RLIFModule, batches: PreflightBatches, num_problems: int
) -> list[Sequence[str]] | None:
    """Return what is acceptable for each problem; None without labels, or where code would run."""
    checker, column = model.evaluator.checker, model.answer_column
    if column is None or not isinstance(checker, AnswerChecker):
        return None
    problems = batches.problems()[:num_problems]
    return [checker.gold(value_at(problem, column)) for problem in problems]
