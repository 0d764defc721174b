"""Forward passes that every data rank makes equally often, and the measuring pass built on them.

Under FSDP2 a pass gathers the parameters of each layer, which is a collective. A data rank with
fewer micro-batches than the others therefore makes filler passes, whose results are dropped:

    data rank 0, 3 micro-batches    own     own  own
    data rank 1, 2 micro-batches    filler  own  own
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlif_lightning.model.packing import Packed, pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.collectives import all_rank_max, is_distributed
from rlif_lightning.records import Completions, TokenStats
from rlif_lightning.sampling import Sampling


def reshard_after_forward(policy: PolicyModel) -> None:
    """Reshard the root after passes without gradients: FSDP keeps it gathered for a backward."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def whole_tensor(value: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded (a collective if it is)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def filler(policy: PolicyModel, device: torch.device) -> Packed:
    """Return the shortest line of tokens there is, for a pass whose result is dropped."""
    token = torch.tensor([policy.eos_ids[0]], device=device)
    ones = torch.ones((1, 1), dtype=torch.bool, device=device)
    return next(pack(Completions([token], token.unsqueeze(0), ones, group_size=1), 2))


def equal_passes(
    policy: PolicyModel, micro_batches: list[Packed], device: torch.device, at_least: int = 0
) -> list[tuple[Packed, bool]]:
    """Add fillers, so that every data rank makes the same number of passes (a collective).

    Args:
        policy: whose passes they are.
        micro_batches: of this data rank.
        device: of the fillers.
        at_least: number of passes.

    Returns:
        Micro-batches, and whether each is this data rank's own; the others are fillers.
    """
    number = max(len(micro_batches), at_least)
    if is_distributed():
        number = int(all_rank_max(torch.tensor(number, device=device)))
    missing = number - len(micro_batches)
    rest = [(filler(policy, device), False)] * missing if missing else []
    return [*rest, *((packed, True) for packed in micro_batches)]


@torch.no_grad()
def measure_tokens(
    policy: PolicyModel, completions: Completions, sampling: Sampling, max_tokens: int
) -> TokenStats:
    """Compute ``[B, T]`` statistics of completions in packed passes without gradients.

    Args:
        policy: the model.
        completions: of B completions; a statistic is 0 outside of their mask.
        sampling: how they were drawn.
        max_tokens: budget of one pass.
    """
    mask = completions.mask
    passes = equal_passes(policy, list(pack(completions, max_tokens)), mask.device)
    measured = [(packed.rows, policy(packed, sampling), is_own) for packed, is_own in passes]
    reshard_after_forward(policy)
    measured = [(rows, stats) for rows, stats, is_own in measured if is_own]
    found = []
    for name in (f.name for f in fields(TokenStats)):
        values = torch.zeros(mask.shape, device=mask.device)
        values = getattr(measured[0][1], name).new_zeros(mask.shape) if measured else values
        for rows, stats in measured:
            values[rows] = getattr(stats, name)  # [m, T] into [B, T]
        found.append(values)
    return TokenStats(*found)
