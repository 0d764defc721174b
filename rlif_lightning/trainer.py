"""RLIFTrainer: Lightning's Trainer with one more method, which the command line offers as ``preflight``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlif_lightning.batch import Prompts
from rlif_lightning.checkpoints import run_checkpoints
from rlif_lightning.folders import run_folder
from rlif_lightning.loaders import EncodedSplit, ValidationLoader
from rlif_lightning.masked import all_rank_objects
from rlif_lightning.module import RLIFModule
from rlif_lightning.preflight import THRESHOLDS, Findings, HeadFindings, examine
from rlif_lightning.prompts import PromptData
from rlif_lightning.stopping import StopSignals

COLORS = {"good": "green", "caution": "yellow", "poor": "red"}


class StepEnds(_TrainingEpochLoop):
    """Lightning's loop over steps with one more place to act: when a step, its logging and its validation are over.

    No hook of Lightning's lies there: ``on_train_batch_end`` comes before the step's figures are logged and before its
    validation, so a run that went on from a checkpoint made there would lack both.
    """

    def on_advance_end(self, data_fetcher: Any) -> None:
        """As Lightning, then the run's checkpoints."""
        if self._skip_next_val:
            # Resumed where a validation had been made: Lightning passes here without a step, and would count one.
            self._skip_next_val = False
            return
        super().on_advance_end(data_fetcher)
        module: Any = self.trainer.lightning_module
        for callback in run_checkpoints(self.trainer):
            callback.on_step_end(self.trainer, module)


class RLIFTrainer(Trainer):
    """Lightning's Trainer that saves at the ends of steps, stops when asked to, and can look before it trains."""

    def __init__(self, *args: Any, callbacks: list[Callback] | Callback | None = None, **kwargs: Any) -> None:
        refuse_twins(callbacks if isinstance(callbacks, list) else [])
        super().__init__(*args, callbacks=callbacks, **kwargs)
        self.fit_loop.epoch_loop = StepEnds(self, self.min_steps, self.max_steps)
        self._signal_connector = self.stop_signals = StopSignals(self)

    def preflight(
        self,
        model: RLIFModule,
        datamodule: PromptData,
        prompts: int = 64,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Findings:
        """Sample groups from the starting policy and say whether the rewards can work; trains nothing.

        Prints a table with a verdict for each reward head, writes ``preflight.json`` beside it, and the completions as
        ``preflight.jsonl``.

        Args:
            model: the module.
            datamodule: the data.
            prompts: training problems that a group is sampled for, drawn at random from the first seed.
            ckpt_path: a checkpoint whose policy is examined instead of the starting one.
            weights_only: whether the checkpoint may hold nothing but tensors and plain values.

        Raises:
            ValueError: fewer prompts than processes, or none.
        """
        if prompts < self.world_size:
            raise ValueError(f"prompts={prompts} must be at least 1 for each of the {self.world_size} processes")
        datamodule.trainer = self
        batches = _Batches(datamodule, prompts, model.seed)
        predicted: Any = self.predict(model, batches, ckpt_path=ckpt_path, weights_only=weights_only)
        records = all_rank_records([record for batch in predicted for record in batch])
        evaluation, gold = model.evaluator.evaluation, None
        if model.answer_column is not None and evaluation.checker is None:  # what must be run is for `validate`
            column = [problem[model.answer_column] for problem in batches.problems()]
            gold = [evaluation.gold_extractor(str(value)) for value in column][: len(records) // model.group_size]
        answers = [model.evaluator.checker.answer(record["completion"]) for record in records]
        weights = {name: reward.weight for name, reward in model.rewards.settings.items()}
        findings = examine(records, answers, gold, weights, model.group_size)
        path = run_folder(self) / "preflight.json"
        if not self.is_global_zero:
            return findings
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**asdict(findings), "thresholds": {name: value for name, (value, _) in THRESHOLDS.items()}}
        path.write_text(json.dumps(content, indent=1) + "\n")
        path.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        print_findings(findings)
        print(f"figures, and the completions as .jsonl: {path}")
        return findings


def refuse_twins(callbacks: list[Callback]) -> None:
    """Refuse two callbacks whose states would be one entry of a checkpoint; an overlay may have added the second.

    Raises:
        ValueError: names them and the remedy.
    """
    keys = Counter(callback.state_key for callback in callbacks if is_overridden("state_dict", callback))
    if twins := sorted(key for key, count in keys.items() if count > 1):
        raise ValueError(
            f"trainer.callbacks={', '.join(twins)}: more than once; leave out one config or `callbacks+` that adds it,"
            " or change the one that is there (--trainer.callbacks.ARGUMENT=... sets the last one's)"
        )


class _Batches:
    """A few problems in order, this process's share; not a list, which Lightning would take for several loaders."""

    def __init__(self, datamodule: PromptData, prompts: int, seed: int):
        self.datamodule, self.prompts, self.seed = datamodule, prompts, seed
        self._loader: ValidationLoader | None = None

    @property
    def loader(self) -> ValidationLoader:
        """Made when it is first asked for: only then do the processes know each other."""
        if self._loader is None:
            self.datamodule.setup("fit")
            train = self.datamodule.train_dataloader()
            split = _drawn(train.split, self.prompts, self.seed)
            self._loader = ValidationLoader(split, train.prompts_per_step, train.num_replicas, train.rank)
        return self._loader

    def problems(self) -> list[dict[str, Any]]:
        """The problems of all processes."""
        return [self.loader.split.dataset[row] for row in self.loader.split.rows]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Prompts]:
        return iter(self.loader)


def all_rank_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all processes, in the order of the data set (a collective)."""
    merged = [record for part in all_rank_objects(records) for record in part]
    return sorted(merged, key=lambda record: (record["index"], record["completion_number"]))


def _drawn(split: EncodedSplit, prompts: int, seed: int) -> EncodedSplit:
    """Training problems at random, in their own order."""
    chosen = sorted(np.random.default_rng(seed).permutation(len(split))[:prompts].tolist())
    token_ids = None if split.token_ids is None else [split.token_ids[k] for k in chosen]
    return replace(split, rows=split.rows[chosen], token_ids=token_ids)


def print_findings(found: Findings) -> None:
    """The figures as tables, with the verdicts in words and the thresholds explained."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_groups_table(found))
    console.print(_heads_table(found.heads))
    for name, verdict, why in [
        ("groups", found.verdict, found.why),
        *((h.name, h.verdict, h.why) for h in found.heads),
    ]:
        console.print(Text.assemble((f"{verdict:>8}", COLORS[verdict]), f"  {name}: {why}"))
    console.print(Text("Thresholds, ours:", "bold"))
    for name, (value, meaning) in THRESHOLDS.items():
        console.print(Text(f"  {name} = {value:g}: {meaning}", "dim"))


def _groups_table(found: Findings) -> Table:
    title = f"Preflight: {found.groups} training problems x {found.group_size} completions of the starting policy"
    table = Table(title=title, title_justify="left")
    shares = {
        "mixed answers": found.mixed,
        "unanimous": found.unanimous,
        "agreement": found.agreement,
        "has answer": found.parseable,
        "ended": found.ended,
        "right": found.accuracy,
        "majority right": found.majority_right,
    }
    shown = {name: f"{100 * share:.1f} %" for name, share in shares.items() if share is not None}
    shown["length"] = f"{found.mean_length:.1f}"
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*shown.values())
    return table


def _heads_table(heads: list[HeadFindings]) -> Table:
    table = Table(title="Inside groups, each head's score", title_justify="left")
    table.add_column("head")
    for heading in ("weight", "differs in", "r with agreement", "r with length", "AUC for right", "verdict"):
        table.add_column(heading, justify="right")
    for head in heads:
        figures = (head.agreement_correlation, head.length_correlation)
        correlations = ["-" if value is None else f"{value:+.2f}" for value in figures]
        auc = "-" if head.auc is None else f"{head.auc:.2f}"
        verdict = Text(head.verdict, COLORS[head.verdict])
        table.add_row(head.name, f"{head.weight:g}", f"{100 * head.varied:.0f} %", *correlations, auc, verdict)
    return table
