"""What preflight samples: some training problems, in order, divided between the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rlif_lightning.data.loaders import EncodedSplit, ValidationLoader
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.processes.collectives import all_rank_objects
from rlif_lightning.records import Prompts
from rlif_lightning.sampling import purpose_seeds


class PreflightBatches:
    """This process's share of a few problems; Lightning would take a list for several loaders.

    Args:
        datamodule: the training problems.
        prompts: how many of them.
        seed: of the choice.
        check: refuses problems that could not be used, before anything is sampled; called with
            those chosen.
    """

    def __init__(
        self, datamodule: PromptData, prompts: int, seed: int, check: Callable[[EncodedSplit], None]
    ):
        self.datamodule, self.prompts, self.seed, self.check = datamodule, prompts, seed, check
        self._loader: ValidationLoader | None = None

    @property
    def loader(self) -> ValidationLoader:
        """Return the loader, made at the first call: only then is the process group there."""
        if self._loader is None:
            self.datamodule.setup("fit")
            train = self.datamodule.train_dataloader()
            split = _drawn(train.split, self.prompts, self.seed)
            self.check(split)
            self._loader = ValidationLoader(
                split, train.prompts_per_rollout, train.num_replicas, train.rank
            )
        return self._loader

    def problems(self) -> list[dict[str, Any]]:
        """Return the problems of all processes."""
        return [self.loader.split.dataset[row] for row in self.loader.split.rows]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Prompts]:
        return iter(self.loader)


def all_rank_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of all processes, in the order of the data set (a collective)."""
    merged = [record for part in all_rank_objects(records) for record in part]
    return sorted(merged, key=lambda record: (record["index"], record["completion_number"]))


def _drawn(split: EncodedSplit, prompts: int, seed: int) -> EncodedSplit:
    """Draw training problems at random, in their own order."""
    chosen = sorted(
        np.random.default_rng(purpose_seeds("preflight", seed))
        .permutation(len(split))[:prompts]
        .tolist()
    )
    token_ids = None if split.token_ids is None else [split.token_ids[k] for k in chosen]
    return replace(split, rows=split.rows[chosen], token_ids=token_ids)
