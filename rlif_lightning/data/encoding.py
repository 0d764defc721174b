"""A data set to an `EncodedSplit`: every problem rendered, tokenised once, and measured.

Large splits are rendered a thousand rows at a time. Only token ids stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track

from rlif_lightning.data.columns import CHUNK
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_format import PromptRenderer
from rlif_lightning.data.sources import Split
from rlif_lightning.data.tokenizer import Encoder, without_overlong

if TYPE_CHECKING:
    from datasets import Dataset

    from rlif_lightning.data.turns import EnvironmentTask

LARGE = 10_000  # rows from which a progress bar is shown


@dataclass(frozen=True)
class SplitEncoder:
    """What turns a data set into token ids.

    Args:
        renderer: makes a row's text.
        encode: makes token ids of texts.
        limit: longest prompt allowed, in tokens; None = any.
        leaves_out: whether longer prompts are left out; otherwise they are refused.
        is_quiet: no progress bar, as in all processes but one.
        environment: what the problems' completions are turns of.
    """

    renderer: PromptRenderer
    encode: Encoder
    limit: int | None
    leaves_out: bool
    is_quiet: bool
    environment: EnvironmentTask | None = None

    def split(self, dataset: Dataset, name: Split, keep: bool) -> EncodedSplit:
        """Render and tokenise every row.

        Args:
            dataset: the rows.
            name: the split's name, for messages.
            keep: whether token ids stay in memory; otherwise each batch is tokenised again.

        Raises:
            ValueError: a row is no problem, makes no token, or makes too many; names it.
        """
        token_ids: list[np.ndarray] = []
        lengths = np.zeros(len(dataset), dtype=np.int32)
        starts, quiet = range(0, len(dataset), CHUNK), self.is_quiet or len(dataset) < LARGE
        for start in track(starts, f"tokenising {name} prompts", disable=quiet):
            ids, overlong = self._chunk(dataset, name, start)
            lengths[start : start + len(ids)] = [
                overlong.get(row, len(each)) for row, each in enumerate(ids, start)
            ]
            token_ids += ids if keep else []
        rows = self._fitting_rows(name, lengths)
        kept = [token_ids[row] for row in rows] if keep else None
        messages = None if self.renderer.chat is None else self.renderer.messages
        made = self.renderer.render, self.encode, messages, self.environment
        return EncodedSplit(dataset, rows, kept, *made)

    def _chunk(
        self, dataset: Dataset, name: Split, start: int
    ) -> tuple[list[np.ndarray], dict[int, int]]:
        """Return the token ids of a thousand rows, and row -> length of overlong texts."""
        columns = dataset[start : start + CHUNK]
        problems = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        for row, problem in enumerate(problems, start):
            self.renderer.check_problem(problem, f"row {row} of the {name} split")
        texts = [self.renderer.render(row) for row in problems]
        limit = self.limit if self.leaves_out else None
        texts, overlong = without_overlong(texts, start, name, limit)
        return self.encode(texts), overlong

    def _fitting_rows(self, name: Split, lengths: np.ndarray) -> np.ndarray:
        if not lengths.all():
            empty = int((lengths == 0).argmax())
            raise ValueError(
                f"format.template={self.renderer.form.template!r}: row {empty} of the {name} split"
                " has no tokens; put text around the problem, or leave the row out"
            )
        if self.limit is None:
            return np.arange(len(lengths))
        rows = (lengths <= self.limit).nonzero()[0]
        if too_long := len(lengths) - len(rows):
            found = (
                f"max_prompt_tokens={self.limit}: {too_long} of {len(lengths)} {name} prompts are"
                f" longer (up to {lengths.max()} tokens)"
            )
            if not self.leaves_out:
                raise ValueError(f"{found}; raise it, or set overlong=filter to leave them out")
            rank_zero_info(f"{found} and are left out")
        return rows
