"""Scores of the steps of a completion, and where steps end among its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepScores:
    """What a head says about each step of each completion.

    Attributes:
        ends: ``[B, S]`` int64, the position of each step's last token, rising; the last step ends
            with the completion. Places beyond a completion's last step hold any number.
        scores: ``[B, S]`` float32, NaN beyond the last step; a completion of which any step has no
            score has none at all.
    """

    ends: Tensor
    scores: Tensor

    @classmethod
    def of(
        cls, ends: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], device: torch.device
    ) -> StepScores:
        """Pad the steps of B completions.

        Args:
            ends: of each completion's steps.
            scores: of the same; none where the completion has no score.
            device: of the result.
        """
        most = max(1, *map(len, ends))
        places = torch.zeros((len(ends), most), dtype=torch.int64)
        values = torch.full((len(ends), most), torch.nan)
        for number, (places_of, scores_of) in enumerate(zip(ends, scores, strict=True)):
            if scores_of:
                places[number, : len(places_of)] = torch.tensor(places_of)
                values[number, : len(scores_of)] = torch.tensor(scores_of)
        return cls(places.to(device), values.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> StepScores:
        """Apply ``function`` to both tensors."""
        return StepScores(function(self.ends), function(self.scores))


def split_text(text: str, delimiter: str) -> list[int]:
    """Return where each step of a text ends, in characters; the last number is its length.

    A delimiter opens the step that it stands before. A step without a word is part of the next one,
    or of the one before if it is the last.

    Example:
        >>> split_text("a ### b ### ### c", "###"), split_text("### a", "###"), split_text("", "#")
        ([2, 8, 17], [5], [0])
    """
    starts, found = [], text.find(delimiter)
    while found >= 0:
        starts.append(found)
        found = text.find(delimiter, found + len(delimiter))
    ends, start = [], 0
    for end in [*starts, len(text)]:
        if text[start:end].replace(delimiter, "").strip():
            ends.append(end)
            start = end
    if not ends:
        return [len(text)]
    ends[-1] = len(text)
    return ends


def token_ends(ends: Sequence[int], num_tokens: int, decoded: Callable[[int], str]) -> list[int]:
    """Return the last token of each step, from the characters at which steps end.

    A token belongs to the step in which its first character lies, wherever a delimiter begins
    inside of it. Steps that would have no token of their own share the position of the one before.

    Args:
        ends: in characters, rising; the last step ends with the last token.
        num_tokens: of the completion, >= 1.
        decoded: returns the text of the completion's first so many tokens.
    """
    found, low = [], 0
    for end in ends[:-1]:
        high = num_tokens  # the fewest tokens whose text reaches the end lie in (low, high]
        while low < high:
            middle = (low + high) // 2
            if len(decoded(middle)) >= end:
                high = middle
            else:
                low = middle + 1
        found.append(max(low - 1, 0))
    return [*found, num_tokens - 1]
