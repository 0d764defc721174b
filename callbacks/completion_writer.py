"""CompletionWriter: sampled completions with scores, answers and advantages.

They go to files, the terminal, TensorBoard and Weights & Biases.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlif_lightning.evaluation.completion_rows import NESTED, completion_records, with_json
from rlif_lightning.masked import mean_over_completion
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.ranks import writes_completions
from rlif_lightning.running.plain_json import json_lines
from rlif_lightning.running.run_folder import naming, run_folder
from rlif_lightning.whole_files import replaced

FORMATS = ("jsonl", "parquet")
PLACES = ("terminal", "tensorboard", "wandb")
WIDTH = 80  # characters of a completion that is shown; files always have all of it
PIPE_WIDTH = 160  # columns of a table that is printed into a file or a pipe


def printable(text: str) -> str:
    """Put text on one line, with control characters escaped (completions are untrusted)."""
    shown = text.replace("\n", "⏎")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def shortened(text: str, width: int) -> str:
    """Leave out the middle of a text longer than ``width``; a final answer is at the end."""
    if len(text) <= width:
        return text
    tail = width * 2 // 3
    return f"{text[: width - tail - 3]} … {text[-tail:]}"


class CompletionWriter(Callback):
    """Writes what the policy says, every few rollouts, and shows it.

    Files in the run's folder: ``completions.jsonl``, or ``completions/rollout-<n>.parquet`` (pandas
    reads the folder as one table). With several ranks each writes its own groups, rank 1 and on
    with ``.rank<k>`` in the name, so nothing is overwritten; what is shown is rank 0's. A record
    has ``rollout`` (counted from 1), ``step`` (optimiser steps), ``index``,
    ``completion_number``, ``prompt``, ``completion``, ``answer``, ``length``, ``ended``,
    ``mean_logprob``, ``mean_entropy``, ``scores`` and ``advantage`` (the mean over its tokens);
    ``correct`` (by the evaluation's checker) if the data have labels. After a resume into the same
    folder, a rollout that was sampled twice has its records twice; the later ones count.

    Args:
        every: rollouts between two samples; the first rollout is always one.
        groups: prompts of a sample, at most, with all their completions.
        format: jsonl | parquet, where ``episode`` and ``extra`` are JSON.
        show: where a sample is shown besides: terminal (a table for each group) | tensorboard (the
            tables as text) | wandb (one table, ``completions``, of the sample's records); the last
            two where the run has that logger.
        write_gold: write the gold answers too, as ``gold`` (a list as JSON); needs
            data.answer_column. Without it, ``correct`` is all that labels add.

    Raises:
        ValueError: an unknown format or a number out of range.
    """

    def __init__(
        self,
        every: int = 10,
        groups: int = 2,
        format: str = "jsonl",
        show: Sequence[str] = PLACES,
        write_gold: bool = False,
    ):
        if every < 1 or groups < 1:
            raise ValueError(f"every={every}, groups={groups}: each at least 1")
        if format not in FORMATS:
            raise ValueError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
        if isinstance(show, str) or set(show) - set(PLACES):
            raise ValueError(f"show={show!r} must be a list of: {', '.join(PLACES)}")
        self.every, self.groups, self.format = every, groups, format
        self.show, self.write_gold = show, write_gold

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Find the run's folder (a collective); refuse to write gold answers without any."""
        pl_module.read_settings_of(getattr(trainer, "datamodule", None))  # set up after callbacks
        if self.write_gold and pl_module.answer_column is None:
            raise ValueError(
                "write_gold=true needs data.answer_column; name it or set write_gold=false"
            )
        self.folder = run_folder(trainer)
        self.suffix = f".rank{trainer.global_rank}" if trainer.global_rank else ""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write and show a sample where one is due.

        Samples are counted by the module's own counter of rollouts, which checkpoints keep.
        """
        rollout = int(pl_module.num_rollouts)
        if (rollout - 1) % self.every or not writes_completions():
            return
        records = self._records(
            pl_module, outputs, {"rollout": rollout, "step": trainer.global_step}
        )
        write_records(self.folder, records, self.format, f"rollout-{rollout:06d}", self.suffix)
        if not trainer.is_global_zero:
            return
        if "terminal" in self.show:
            pl_module.print(render(records, WIDTH))
        if "tensorboard" in self.show:
            self._to_tensorboard(trainer, records)
        if "wandb" in self.show:
            columns, rows = table_of(records)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table("completions", columns, rows, step=rollout - 1)

    def _records(
        self, pl_module: RLIFModule, outputs: Any, place: dict[str, int]
    ) -> list[dict[str, Any]]:
        rollout, checker, column = (
            outputs["rollout"],
            pl_module.evaluator.checker,
            pl_module.answer_column,
        )
        advantages = mean_over_completion(outputs["advantages"], rollout.mask).tolist()
        # In ``rollout`` a completion that a head has dropped has no tokens.
        records = completion_records(outputs["drawn"], outputs["rewards"])
        records = records[: self.groups * rollout.group_size]
        for row, record in enumerate(records):
            record |= {"answer": checker.answer(record["completion"]), "advantage": advantages[row]}
        if column is not None:
            problems = rollout.prompts.rows(column)
            problems = [problems[row // rollout.group_size] for row in range(len(records))]
            correct = checker.correct([record["answer"] for record in records], problems, column)
            for record, verdict, problem in zip(records, correct, problems, strict=True):
                record |= {
                    "correct": verdict,
                    **({"gold": _plain(problem[column])} if self.write_gold else {}),
                }
        return [{**place, **record} for record in records]

    def _to_tensorboard(self, trainer: Trainer, records: list[dict[str, Any]]) -> None:
        # Four spaces make each line code, so that no completion is read as Markdown or HTML.
        text = "\n".join(f"    {line}" for line in render(records, WIDTH, color=False).splitlines())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Lightning counts from 0.
                logger.experiment.add_text("completions", text, records[0]["rollout"] - 1)


def table_of(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return a sample's columns and rows: a record's fields, each head's score as one of them."""
    rows = []
    for record in map(_flat, records):
        scores = {f"score {name}": score for name, score in record["scores"].items()}
        rows.append({key: value for key, value in record.items() if key != "scores"} | scores)
    return [*rows[0]], [[*row.values()] for row in rows]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with JSON where what is in a field differs from row to row."""
    return with_json(record, [name for name in NESTED if name in record])


def _plain(gold: Any) -> str:
    return gold if isinstance(gold, str) else json.dumps(gold, default=str)


def write_records(
    folder: Path, records: list[dict[str, Any]], format: str, part: str, suffix: str
) -> None:
    """Append to a JSON Lines file, or write a Parquet file under a temporary name first.

    The paths are ``completions<suffix>.jsonl`` and ``completions/<part><suffix>.parquet``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if format == "jsonl":
        path = folder / f"completions{suffix}.jsonl"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json_lines(records))
        return
    import pyarrow
    import pyarrow.parquet

    path = folder / "completions" / f"{part}{suffix}.parquet"
    path.parent.mkdir(exist_ok=True)
    table = pyarrow.Table.from_pylist([*map(_flat, records)], _schema(records[0]))
    with naming(path), replaced(path, path.with_suffix(".unfinished")) as unfinished:
        pyarrow.parquet.write_table(table, unfinished)


def _schema(record: dict[str, Any]) -> Any:
    """Return column types by name, so that files of samples without any answer match others."""
    import pyarrow

    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    types = {name: kinds.get(type(value), pyarrow.string()) for name, value in record.items()}
    types["scores"] = pyarrow.struct(dict.fromkeys(record["scores"], pyarrow.float64()))
    return pyarrow.schema(types)


def render(records: list[dict[str, Any]], width: int, color: bool | None = None) -> str:
    """Return a table for each group as text; ``color=None`` colours it where the terminal can."""
    color = sys.stdout.isatty() if color is None else color
    columns = None if color else PIPE_WIDTH
    console = Console(
        file=StringIO(), force_terminal=color, width=columns, color_system="auto" if color else None
    )
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["index"], []).append(record)
    for group in groups.values():
        console.print(_group_table(group, width))
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


def _group_table(group: list[dict[str, Any]], width: int) -> Table:
    """Build a table with one line per distinct completion, the best advantage first."""
    first = group[0]
    title = Text(
        f"rollout {first['rollout']}, problem {first['index']}:"
        f" {shortened(printable(first['prompt']), width)}"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("completion", overflow="fold", ratio=1)
    table.add_column("answer", max_width=16, overflow="ellipsis", no_wrap=True)
    for heading in (
        *(["right"] if "correct" in first else []),
        *first["scores"],
        "advantage",
        "tokens",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    copies = Counter(record["completion"] for record in group)
    distinct = {
        record["completion"]: record
        for record in sorted(group, key=lambda record: -record["advantage"])
    }
    for text, record in distinct.items():
        times = f"{copies[text]} x" if copies[text] > 1 else ""
        table.add_row(times, Text(shortened(printable(text), width)), *_figures(record))
    return table


def _figures(record: dict[str, Any]) -> list[Text | str]:
    answer = (
        Text("none", "italic") if record["answer"] is None else Text(printable(record["answer"]))
    )
    verdicts = {True: Text("yes", "green"), False: Text("no", "red")}
    verdict = [verdicts[record["correct"]]] if "correct" in record else []
    scores = ["-" if score is None else f"{score:.3f}" for score in record["scores"].values()]
    tokens = f"{record['length']}{'' if record['ended'] else ' cut'}"
    return [answer, *verdict, *scores, f"{record['advantage']:+.2f}", tokens]
