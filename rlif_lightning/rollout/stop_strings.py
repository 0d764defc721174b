"""Strings at which completions end, found in the text of their last tokens.

The text of special tokens counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.sampling import cut_at_stop

STOP_TAIL = 8  # tokens that are decoded in addition to a stop string's own length


class StopStrings:
    """A search for stop strings, which also cuts texts before them.

    Args:
        tokenizer: of the policy.
        stop: the strings.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, list(stop)
        # A character may take as many tokens as it has bytes.
        self.tail = max((len(string.encode()) for string in self.stop), default=0) + STOP_TAIL

    def found(
        self, ids: Tensor, rows: Tensor, lengths: Tensor, starts: Tensor | None = None
    ) -> Tensor:
        """Return which completions have a stop string among their last tokens, ``[n]`` bool.

        Args:
            ids: ``[B, T]`` int64 on the CPU.
            rows, lengths: ``[n]``: numbers and lengths of the completions to search.
            starts: ``[n]``: where their present turns begin, before which nothing is searched.
        """
        if not self.stop:
            return torch.zeros(len(rows), dtype=torch.bool)
        begins = [0] * len(rows) if starts is None else starts.tolist()
        spans = zip(rows.tolist(), begins, lengths.tolist(), strict=True)
        tails = [
            self.tokenizer.decode(ids[row, max(begin, end - self.tail) : end])
            for row, begin, end in spans
        ]
        return torch.tensor(
            [any(string in tail for string in self.stop) for tail in tails], dtype=torch.bool
        )

    def text(self, ids: Tensor) -> str:
        """Return a completion's text without special tokens, cut before the first stop string."""
        plain = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not self.stop:
            return plain
        whole = self.tokenizer.decode(ids)
        cut = cut_at_stop(whole, self.stop)
        if cut == whole:
            return plain
        special = set(ids.tolist()) & set(self.tokenizer.all_special_ids)
        for token in self.tokenizer.convert_ids_to_tokens(sorted(special)):
            cut = cut.replace(token, "")
        return cut
