"""Places of rows and prompts during decoding: which are in use, and what moves when some leave.

All of it is computed on the host, without waiting for the device. Sizes are rounded up where shapes
should repeat.

Example: five rows, of which those at places 1 and 3 leave:

    exact         source [0 4 2]        place 1 gets the content of place 4; three are used
    not exact     source [0 -1 2 -1 4]  three of five stay, so nothing moves, and 1 and 3 are free
    three leave   source [0 4]          at most half stay: gaps are closed as well (1, 2, 3 left)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.model.packing import upload

EMPTY = -1


class Places:
    """A fixed number of places; the first ``used`` are taken, or free between taken ones.

    Attributes:
        owner: ``[size]`` int64: the number that a place belongs to; ``EMPTY`` = it is free.
        length: ``[size]`` int64: tokens at the place; 0 where it is free.
    """

    def __init__(self, size: int):
        self.owner, self.length = torch.full((size,), EMPTY), torch.zeros(size, dtype=torch.int64)
        self.used = 0

    def live(self) -> Tensor:
        """Return which places are taken, ``[used]`` bool."""
        return self.owner[: self.used] >= 0

    def free(self, number: int) -> list[int]:
        """Return the first places that are free."""
        gaps = (~self.live()).nonzero().squeeze(1).tolist()
        return [*gaps, *range(self.used, len(self.owner))][:number]

    def take(self, owners: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """Put owners in the first free places; return these."""
        places = self.free(len(owners))
        self.put(places, owners, lengths)
        return places

    def put(
        self, places: Sequence[int], owners: Sequence[int], lengths: Sequence[int] | None = None
    ) -> None:
        """Put owners in these free places; without lengths they have no token."""
        self.owner[list(places)] = torch.tensor(list(owners))
        self.length[list(places)] = torch.tensor(list(lengths)) if lengths is not None else 0
        self.used = max(self.used, max(places) + 1)

    def where(self) -> dict[int, int]:
        """Return the place of each owner."""
        return {
            owner: place
            for place, owner in enumerate(self.owner[: self.used].tolist())
            if owner >= 0
        }

    def longest(self) -> int:
        """Return the largest length of a place."""
        return int(self.length[: self.used].max()) if self.used else 0

    def lengthen(self, tokens: int) -> None:
        """Add tokens to the length of each taken place."""
        self.length[: self.used] += tokens * self.live()

    def arrange(self, arrangement: Arrangement) -> None:
        """Move and free places by an arrangement."""
        arrangement.apply(self.owner, EMPTY)
        arrangement.apply(self.length, 0)
        self.used = len(arrangement.source)

    def rename(self, arrangement: Arrangement) -> None:
        """Rename owners that are themselves places, after an arrangement of those."""
        names = torch.full((len(self.owner) + 1,), EMPTY)
        taken = arrangement.source >= 0
        names[arrangement.source[taken]] = taken.nonzero().squeeze(1)
        self.owner[: self.used] = torch.where(self.live(), names[self.owner[: self.used]], EMPTY)


class Arrangement:
    """The moves between places after some have been freed.

    Args:
        source: ``[new used]`` int64 on the CPU: the place whose content a place gets; ``EMPTY`` =
            it becomes free.
        device: of the tensors that :meth:`move` takes.
    """

    def __init__(self, source: Tensor, device: torch.device):
        self.source, self.device = source, device
        places = torch.arange(len(source))
        holes = places[(source >= 0) & (source != places)]
        self.moves = upload(torch.stack([holes, source[holes]]), device) if len(holes) else None

    def apply(self, values: Tensor, nothing: int | bool) -> None:
        """Rearrange a CPU tensor of one value per place; free places get ``nothing``."""
        new = torch.where(self.source >= 0, values[self.source], nothing)
        values.fill_(nothing)
        values[: len(new)] = new

    def move(self, values: Tensor) -> None:
        """Move the content of places, which are the first dimension of a device tensor.

        Content only moves into gaps, so nothing is overwritten before it has moved.
        """
        if self.moves is not None:
            values[self.moves[0]] = values[self.moves[1]]


def close_gaps(stays: Tensor, exact: bool, device: torch.device) -> Arrangement:
    """Return the arrangement after some places have left: the last ones move into the gaps.

    If it need not be exact, gaps are kept for new rows while more than half of the places stay.

    Args:
        stays: ``[used]`` bool, on the CPU.
        exact: no gap may stay.
        device: of the tensors that are moved.
    """
    left, used = int(stays.sum()), len(stays)
    if exact or 2 * left <= used:
        # As many gaps are among the first ``left`` places as rows beyond them.
        source = torch.arange(left)
        source[~stays[:left]] = stays[left:].nonzero().squeeze(1) + left
    else:
        # Nothing moves; places after the last row are no longer used.
        source = torch.where(stays, torch.arange(used), EMPTY)[: int(stays.nonzero().max()) + 1]
    return Arrangement(source, device)


def meeting_points(owner: Tensor, counts: Tensor, most: int, heads: int) -> tuple[Tensor, Tensor]:
    """Return the indices that sort lines by prompt, and those that sort them back.

    A line is a row's queries of one key head. ``kv_memory.py`` has an example.

    Args:
        owner: ``[n]`` int64, each row's prompt; ``EMPTY`` = none.
        counts: ``[p]`` int64, the prompts' numbers of rows.
        most: at least the most rows of a prompt.
        heads: key heads.

    Returns:
        ``[n * heads]``: each line's place among ``[p, heads, most]`` (0 for rows without a prompt);
        ``[p * heads * most]``: the line at each place (0 where there is none).
    """
    rows = (owner >= 0).nonzero().squeeze(1)
    of, head = owner[rows], torch.arange(heads)
    # ``within``: a row's number among the rows of its prompt.
    order = of.argsort(stable=True)
    within = torch.empty_like(order)
    within[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[of[order]]
    points = (of.unsqueeze(1) * heads + head) * most + within.unsqueeze(1)  # [rows, heads]
    place = torch.zeros((len(owner), heads), dtype=torch.int64)
    grid = torch.zeros(len(counts) * heads * most, dtype=torch.int64)
    place[rows], grid[points] = points, rows.unsqueeze(1) * heads + head
    return place.flatten(), grid


def rounded(number: int, unit: int) -> int:
    """Return the next multiple of ``unit``, or of a larger power of two (at most 1/4 more)."""
    step = max(unit, 1 << max((number - 1).bit_length() - 3, 0))
    return -(-number // step) * step
