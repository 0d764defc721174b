"""Problems to `Prompts`: `PromptData` is what YAML sees as ``data.*``.

Where problems come from is in ``sources.py``, how one becomes a text in ``prompt_format.py``, how
a split is tokenised in ``encoding.py``, which rows make a batch in ``loaders.py``. Everything is
tokenised once, in ``setup``, but for prediction batch by batch. There are no worker processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.benchmark_source import BenchmarkData
from rlif_lightning.data.columns import check_column
from rlif_lightning.data.curriculum import Curriculum
from rlif_lightning.data.described import Described
from rlif_lightning.data.encoding import SplitEncoder
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.given_problems import ProblemSourceLike, as_source
from rlif_lightning.data.loaders import EncodedSplit, TrainLoader, ValidationLoader
from rlif_lightning.data.mixed_sources import EasyFirst, MixedProblems
from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer
from rlif_lightning.data.sources import (
    ArithmeticProblems,
    HubDataset,
    LocalFiles,
    ProblemSource,
    ReasoningGym,
    Split,
)
from rlif_lightning.data.stream_loader import StreamLoader, Windows
from rlif_lightning.data.streams import Streamed, first_rows
from rlif_lightning.data.tokenizer import Encoder, TokenizerLike, find_tokenizer, prompt_encoder
from rlif_lightning.data.turns import environment_task
from rlif_lightning.records import Prompts
from rlif_lightning.setting_types import check_arguments

__all__ = [
    "ArithmeticProblems",
    "BenchmarkData",
    "EasyFirst",
    "HubDataset",
    "LocalFiles",
    "MixedProblems",
    "ProblemSource",
    "PromptData",
    "PromptFormat",
    "ReasoningGym",
    "Streamed",
]


class PromptData(Described, LightningDataModule):
    """Batches of prompts; validation, test and prediction share the validation split.

    Args:
        source: where the problems come from, by class path; in Python also data (`as_source`).
        tokenizer: hub name or folder of the tokenizer; null = the policy's own.
        group_size: G, completions sampled per prompt (read by the module, unused here).
        prompts_per_rollout: P, prompts per training step over all processes; a multiple of their
            number.
        prompt_column: column with the problem, a text or messages ({role, content}, the last one
            the user's). Nested columns are named by a dotted path, such as
            ``reward_model.ground_truth``, here and everywhere.
        answer_column: column with the gold answer, if there is one: a text, a number, or a list of
            acceptable answers. It is for measuring only: the template cannot show it, and
            label-free rewards never get it.
        format: how a problem becomes the text that the model reads.
        environment: what answers each turn of the policy; null = single turns.
        max_prompt_tokens: longest prompt allowed, in tokens; no limit if absent.
        overlong: what to do with longer ones: "refuse" stops with their number, "filter" leaves
            them out and tells it.
        validation_prompts: number of validation problems used, the first ones; all if absent.
        validation_prompts_per_batch: prompts per validation batch over all processes; as in
            training if absent.
        seed: seed of the order of training prompts, at least 0.
        revision: branch, tag or commit of the tokenizer on the hub (linked from
            model.policy.revision).
        trust_remote_code: let the tokenizer run code from its repository.

    Attributes:
        fits_next: the data that ``fit`` needs is loaded, and checked, with that of ``validate``
            already.

    Raises:
        ValueError: an argument is out of range or needs another one.
    """

    fits_next = False

    def __init__(
        self,
        source: ProblemSourceLike,
        tokenizer: TokenizerLike | None = None,
        group_size: int = 8,
        prompts_per_rollout: int = 16,
        prompt_column: str = "question",
        answer_column: str | None = None,
        format: PromptFormat = PromptFormat(),
        environment: EnvironmentSettings | None = None,
        max_prompt_tokens: int | None = None,
        overlong: Literal["refuse", "filter"] = "refuse",
        validation_prompts: int | None = None,
        validation_prompts_per_batch: int | None = None,
        seed: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        source = as_source(source)
        check_arguments(PromptData, {**locals(), "tokenizer": None})  # it may be an object
        super().__init__()
        self.source, self.tokenizer_name = source, tokenizer
        self.remember(source=source)
        self.group_size, self.prompts_per_rollout = group_size, prompts_per_rollout
        self.prompt_column, self.answer_column = prompt_column, answer_column
        self.format, self.environment = format, environment
        self.max_prompt_tokens, self.overlong = max_prompt_tokens, overlong
        self.validation_prompts = validation_prompts
        per_batch = validation_prompts_per_batch
        self.validation_prompts_per_batch = prompts_per_rollout if per_batch is None else per_batch
        self.seed, self.revision, self.trust_remote_code = seed, revision, trust_remote_code
        self.told: set[str] = set()  # lines about the data that were logged before
        self._splits: dict[Split, EncodedSplit] = {}
        self._predicted: EncodedSplit | None = None
        self._encode: Encoder | None = None
        self._loader: TrainLoader | None = None
        self._place: dict[str, Any] | None = None
        self._check_arguments()

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenise the splits that ``stage`` needs, once.

        Raises:
            ValueError: the tokenizer, a column or a split is missing, a prompt is too long, or the
                batch doesn't fit the data or the number of processes.
        """
        processes, _ = self._shard()
        for name in ("prompts_per_rollout", "validation_prompts_per_batch"):
            if getattr(self, name) % processes:
                raise ValueError(
                    f"{name}={getattr(self, name)} can't be shared by {processes} processes; set a"
                    " multiple of their number"
                )
        if self.trainer is not None and self.trainer.overfit_batches:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                "trainer.overfit_batches can't be used: every epoch is shuffled; use a source of a"
                " few problems"
            )
        encoder = self._split_encoder()
        if stage == "predict":
            self._predicted = self._load("validation", encoder, keep=False)
            return self._check_size("validation", len(self._predicted), processes)
        validates = self._validates(stage)
        wanted: list[Split] = ["train"] if stage in ("fit", None) or self.fits_next else []
        if stage != "fit" or validates:
            wanted.append("validation")
        for split in wanted:
            if split not in self._splits:
                self._splits[split] = self._load(split, encoder)
                self._check_size(split, len(self._splits[split]), processes)

    def split(self, name: Split) -> EncodedSplit | None:
        """Return a split that ``setup`` has loaded; None where the stage did not need it."""
        return self._splits.get(name)

    def train_dataloader(self) -> TrainLoader:
        """Return shuffled batches of ``prompts_per_rollout`` prompts, this process's share."""
        split, place = self._splits["train"], (self.prompts_per_rollout, self.seed, *self._shard())
        if isinstance(self.source, Streamed):
            windows = Windows(self.source, self._split_encoder(), split)
            buffer = self.source.buffer
            self._loader = StreamLoader(split, *place, windows=windows, buffer=buffer)
        else:
            remembers = isinstance(self.source, Curriculum)
            self._loader = TrainLoader(split, *place, self.source.order, remembers)
        if self._place is not None:
            self._loader.load_state_dict(self._place)
        return self._loader

    def upcoming(self, ahead: int) -> Prompts:
        """Return the training prompts so many batches after the last one, this process's share."""
        assert self._loader is not None, "train_dataloader comes first"
        return self._loader.upcoming(ahead)

    def val_dataloader(self) -> ValidationLoader:
        """Return the validation problems in order, this process's share."""
        return ValidationLoader(
            self._splits["validation"], self.validation_prompts_per_batch, *self._shard()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order of prompts.

        Lightning itself keeps it in the middle of an epoch only.
        """
        return {} if self._loader is None else {"train": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the next ``train_dataloader`` resume where the checkpoint was made."""
        self._place = state_dict.get("train")

    def loaded_splits(self, stage: str) -> dict[str, EncodedSplit]:
        """Return split name -> what ``setup`` loaded for this stage."""
        if stage == "predict":
            return {} if self._predicted is None else {"validation": self._predicted}
        return {str(name): split for name, split in self._splits.items()}

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> ValidationLoader:
        """Return the validation problems in order, this process's share, tokenised by batch."""
        split = self._splits["validation"] if self._predicted is None else self._predicted
        return ValidationLoader(split, self.validation_prompts_per_batch, *self._shard())

    @property
    def num_predicted_rows(self) -> int:
        """Rows of the data set that predict reads, after ``setup("predict")``."""
        assert self._predicted is not None
        return len(self._predicted.dataset)

    def skip_predicted(self, done: np.ndarray) -> None:
        """Leave rows out of predict; each process keeps at least one, as no batch may be empty.

        Args:
            done: bool, one for each of ``num_predicted_rows``.
        """
        assert self._predicted is not None
        rows = np.asarray(self._predicted.rows)
        left = rows[~done[rows]]
        spare = self._shard()[0] - len(left)
        if len(left) and spare > 0:
            left = np.sort(np.concatenate([left, rows[done[rows]][:spare]]))
        self._predicted = replace(self._predicted, rows=left)

    def _shard(self) -> tuple[int, int]:
        """Return the number of data ranks, and which one this process belongs to."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (shard["num_replicas"], shard["rank"]) if shard else (1, 0)

    def _check_arguments(self) -> None:
        counts = (
            "group_size",
            "prompts_per_rollout",
            "validation_prompts_per_batch",
            "max_prompt_tokens",
            "validation_prompts",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
        if self.overlong == "filter" and self.max_prompt_tokens is None:
            raise ValueError(
                "overlong=filter leaves nothing out without max_prompt_tokens; set it, or"
                " overlong=refuse"
            )

    def _validates(self, stage: str | None) -> bool:
        """Return whether training is evaluated; without problems to do so, Lightning is told."""
        trainer: Any = self.trainer
        wanted = trainer is None or trainer.limit_val_batches != 0
        if stage != "fit" or not wanted or self.source.has("validation"):
            return wanted
        rank_zero_info("the data has no validation problems: training is not evaluated")
        if trainer is not None:
            trainer.limit_val_batches = 0
        return False

    def _split_encoder(self) -> SplitEncoder:
        module = getattr(self.trainer, "lightning_module", None)
        tokenizer = find_tokenizer(
            self.tokenizer_name, self.revision, self.trust_remote_code, module
        )
        if self._encode is None:
            self._encode = prompt_encoder(tokenizer, self.format.chat)
        chat = tokenizer if self.format.chat else None
        renderer = PromptRenderer(self.prompt_column, self.format, chat)
        task = environment_task(self.environment, renderer, self._encode, tokenizer)
        limits = self.max_prompt_tokens, self.overlong == "filter"
        return SplitEncoder(renderer, self._encode, *limits, self._shard()[1] > 0, task)

    def _load(self, split: Split, encoder: SplitEncoder, keep: bool = True) -> EncodedSplit:
        dataset = first_rows(self.source, split)
        if split == "validation" and self.validation_prompts is not None:
            dataset = dataset.select(range(min(self.validation_prompts, len(dataset))))
        if len(dataset) == 0:
            raise ValueError(
                f"source: the {split} split of {type(self.source).__name__} has no rows; give it"
                " problems"
            )
        for name in ("prompt_column", "answer_column"):
            if (column := getattr(self, name)) is not None:
                check_column(f"{name}={column!r}", column, dataset, f"the {split} split")
        encoder.renderer.check(dataset.features)
        if self.answer_column is not None:
            self.format.refuse_to_show(self.prompt_column, self.answer_column)
        return encoder.split(dataset, split, keep)

    def _check_size(self, split: Split, size: int, processes: int) -> None:
        if split == "train" and size < self.prompts_per_rollout:
            remedy = "lower it" if size else "overlong=filter leaves none: raise max_prompt_tokens"
            where = "the train split"
            if isinstance(self.source, Streamed):
                where = f"the first window of data.source.buffer={self.source.buffer} rows"
                remedy += ", or raise the buffer"
            raise ValueError(
                f"prompts_per_rollout={self.prompts_per_rollout}, but {where} has only {size}"
                f" prompts; {remedy}"
            )
        if size < processes:
            raise ValueError(
                f"source: the {split} split has {size} prompts, fewer than the {processes}"
                " processes; use fewer processes or more problems"
            )
