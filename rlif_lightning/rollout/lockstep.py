"""Decoding with weights that stay sharded: all data ranks make the same number of passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import filler
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.rollout.decoder_base import Decoder
from rlif_lightning.rollout.places import Arrangement


class LockstepDecoder(Decoder):
    """A decoder of a policy whose layers are gathered in every pass, which is a collective.

    In one pass some data ranks may admit prompts while others advance rows. A data rank that has
    finished makes passes over a filler until the last one has.

    Args:
        decoder: does the work.
        policy: of the decoder.
        device: of the prompts.
    """

    def __init__(self, decoder: Decoder, policy: PolicyModel, device: torch.device):
        self.decoder, self.policy, self.device = decoder, policy, device
        self.can_join, self.exact = decoder.can_join, decoder.exact
        self.can_extend = decoder.can_extend

    def prefills(self, owners: Sequence[int]) -> bool:
        return self.decoder.prefills(owners)

    def num_places(self, rows: int) -> int:
        return self.decoder.num_places(rows)

    def prepare(self) -> None:
        self.decoder.prepare()

    @property
    def bucket(self) -> tuple[int, ...]:
        return self.decoder.bucket

    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        self.decoder.arrange(arrangement, waiting)

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        if self.decoder.prefills(owners):
            self._ranks_at_work(True)
        return self.decoder.admit(owners, places)

    def advance(self, tokens: Tensor) -> Tensor:
        self._ranks_at_work(True)
        return self.decoder.advance(tokens)

    def extend(self, places: Sequence[int], ids: Sequence[Tensor]) -> Tensor:
        self._ranks_at_work(True)
        return self.decoder.extend(places, ids)

    def restart(self, places: Sequence[int]) -> None:
        self.decoder.restart(places)

    def finish(self) -> None:
        line = filler(self.policy, self.device)
        while self._ranks_at_work(False):
            self.policy.completion_hidden(line)

    def _ranks_at_work(self, this_one: bool) -> int:
        return int(all_rank_sum(torch.tensor(int(this_one), device=self.device)))
