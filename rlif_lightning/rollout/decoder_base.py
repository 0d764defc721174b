"""The interface of decoders (``decoders.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rlif_lightning.rollout.places import Arrangement


class Decoder(ABC):
    """The state of completions that are being drawn (rows), each at a place in the batch.

    Attributes:
        can_join: whether rows can be admitted while others are being decoded.
        exact: whether rows that ended must leave before the next pass and no place may be empty.
        can_extend: whether rows can be continued by tokens that nobody drew.
    """

    can_join: bool
    exact = can_extend = True

    @abstractmethod
    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        """Put rows of the prompts ``owners`` in empty places, and compute the prompts.

        Returns:
            ``[rows, H]``, the hidden state of each row's last prompt token.
        """

    def prefills(self, owners: Sequence[int]) -> bool:
        """Return whether admitting rows of these prompts takes a pass of the model (never two)."""
        return True

    def num_places(self, rows: int) -> int:
        """Return how many places a pass computes when the first ``rows`` are in use."""
        return rows

    def prepare(self) -> None:  # noqa: B027 - most decoders plan nothing
        """Plan the next pass on the host; call it once before each :meth:`advance`."""

    @property
    def bucket(self) -> tuple[int, ...]:
        """Return the sizes that decide the prepared pass's operations and addresses."""
        return ()

    @abstractmethod
    def advance(self, tokens: Tensor) -> Tensor:
        """Compute one token of each place ``[n]``; return the hidden states ``[n, H]``."""

    def extend(self, places: Sequence[int], ids: Sequence[Tensor]) -> Tensor:
        """Add tokens that nobody drew to rows at ``places``, in one pass.

        Returns:
            ``[k, H]``, the hidden state of each row's last new token.
        """
        raise NotImplementedError

    def restart(self, places: Sequence[int]) -> None:
        """Forget prompt and tokens of rows at ``places``; :meth:`extend` gives them new ones."""
        raise NotImplementedError

    @abstractmethod
    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        """Remove and move rows (``places.py``); ``waiting`` is the prompt of the next row."""

    def finish(self) -> None:  # noqa: B027 - most decoders have no other process to wait for
        """End decoding after the last row has left."""
