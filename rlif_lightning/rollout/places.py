"""Places of rows and of prompts while completions are drawn: who has which, and what moves when some leave.

This is the host's side; it needs no answer from the device. Sizes are rounded up where shapes shall
repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.model.packing import upload

EMPTY = -1


class Places:
    """A fixed number of places, of which the first ``used`` are taken or lie between taken ones.

    Attributes:
        owner: ``[size]`` int64: what a place belongs to; ``EMPTY`` = it is free.
        length: ``[size]`` int64: tokens at it; 0 where it is free.
    """

    def __init__(self, size: int):
        self.owner, self.length = torch.full((size,), EMPTY), torch.zeros(size, dtype=torch.int64)
        self.used = 0

    def live(self) -> Tensor:
        """``[used]`` bool: which places are taken."""
        return self.owner[: self.used] >= 0

    def free(self, number: int) -> list[int]:
        """The first places that are free."""
        gaps = (~self.live()).nonzero().squeeze(1).tolist()
        return [*gaps, *range(self.used, len(self.owner))][:number]

    def take(self, owners: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """Put owners in the first free places; which ones."""
        places = self.free(len(owners))
        self.put(places, owners, lengths)
        return places

    def put(
        self, places: Sequence[int], owners: Sequence[int], lengths: Sequence[int] | None = None
    ) -> None:
        """Put owners in these free places, without a token if no lengths are given."""
        self.owner[list(places)] = torch.tensor(list(owners))
        self.length[list(places)] = torch.tensor(list(lengths)) if lengths is not None else 0
        self.used = max(self.used, max(places) + 1)

    def where(self) -> dict[int, int]:
        """The place of each owner."""
        return {
            owner: place
            for place, owner in enumerate(self.owner[: self.used].tolist())
            if owner >= 0
        }

    def longest(self) -> int:
        """Tokens at the place that has most."""
        return int(self.length[: self.used].max()) if self.used else 0

    def lengthen(self, tokens: int) -> None:
        """Each taken place has so many tokens more."""
        self.length[: self.used] += tokens * self.live()

    def arrange(self, arrangement: Arrangement) -> None:
        """Follow an arrangement."""
        arrangement.apply(self.owner, EMPTY)
        arrangement.apply(self.length, 0)
        self.used = len(arrangement.source)

    def rename(self, arrangement: Arrangement) -> None:
        """Owners are places that follow an arrangement."""
        names = torch.full((len(self.owner) + 1,), EMPTY)
        taken = arrangement.source >= 0
        names[arrangement.source[taken]] = taken.nonzero().squeeze(1)
        self.owner[: self.used] = torch.where(self.live(), names[self.owner[: self.used]], EMPTY)


class Arrangement:
    """Where the content of each place comes from.

    Args:
        source: ``[new used]`` int64 on the CPU: the place whose content a place gets; ``EMPTY`` =
            it becomes free.
        device: of what :meth:`move` moves.
    """

    def __init__(self, source: Tensor, device: torch.device):
        self.source, self.device = source, device
        places = torch.arange(len(source))
        holes = places[(source >= 0) & (source != places)]
        self.moves = upload(torch.stack([holes, source[holes]]), device) if len(holes) else None

    def apply(self, values: Tensor, nothing: int | bool) -> None:
        """Bring what is kept on the CPU for each place in order; free places get ``nothing``."""
        new = torch.where(self.source >= 0, values[self.source], nothing)
        values.fill_(nothing)
        values[: len(new)] = new

    def move(self, values: Tensor) -> None:
        """Move what lies at the places of the first dimension.

        Nothing that moves is overwritten before it has.
        """
        if self.moves is not None:
            values[self.moves[0]] = values[self.moves[1]]


def close_gaps(stays: Tensor, exact: bool, device: torch.device) -> Arrangement:
    """How places are arranged once some have left: the last ones move into gaps, each at most once.

    Where it need not be exact, gaps wait for newcomers until they are more than what stays.

    Args:
        stays: ``[used]`` bool, on the CPU.
        exact: no gap may stay.
        device: of what is moved.
    """
    left, used = int(stays.sum()), len(stays)
    if exact or 2 * left <= used:
        source = torch.arange(left)
        source[~stays[:left]] = stays[left:].nonzero().squeeze(1) + left
    else:
        source = torch.where(stays, torch.arange(used), EMPTY)[: int(stays.nonzero().max()) + 1]
    return Arrangement(source, device)


def meeting_points(owner: Tensor, counts: Tensor, most: int, heads: int) -> tuple[Tensor, Tensor]:
    """How lines (a row's queries of one key head) are brought together by prompts, and back.

    Args:
        owner: ``[n]`` int64, each row's prompt; ``EMPTY`` = none.
        counts: ``[p]`` int64, the prompts' rows.
        most: at least the most rows of a prompt.
        heads: key heads.

    Returns:
        ``[n * heads]``: each line's place among ``[p, heads, most]`` (0 for rows without a prompt);
        ``[p * heads * most]``: the line at each place (0 where there is none).
    """
    rows = (owner >= 0).nonzero().squeeze(1)
    of, head = owner[rows], torch.arange(heads)
    order = of.argsort(stable=True)
    within = torch.empty_like(order)
    within[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[of[order]]
    points = (of.unsqueeze(1) * heads + head) * most + within.unsqueeze(1)
    place, grid = (
        torch.zeros((len(owner), heads), dtype=torch.int64),
        torch.zeros(len(counts) * heads * most).long(),
    )
    place[rows], grid[points] = points, rows.unsqueeze(1) * heads + head
    return place.flatten(), grid


def rounded(number: int, unit: int) -> int:
    """The next multiple of ``unit``, or of a power of two that makes it more by a quarter at most."""
    step = max(unit, 1 << max((number - 1).bit_length() - 3, 0))
    return -(-number // step) * step
