"""Forward passes that every data rank makes equally often, and the scoring pass built on them.

Under FSDP2 a pass gathers the weights of each layer together with all other ranks. A rank with
fewer micro-batches than the others therefore makes filler passes, whose result counts for nothing.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch.distributed.fsdp import FSDPModule

from rlif_lightning.model.packing import Packed, pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.collectives import all_rank_max, is_distributed
from rlif_lightning.records import Completions, TokenStats
from rlif_lightning.sampling import Sampling


def reshard_after_forward(policy: PolicyModel) -> None:
    """After passes without gradients: FSDP keeps the root's part for a backward pass that will not come."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def filler(policy: PolicyModel, device: torch.device) -> Packed:
    """The shortest line of tokens there is, for a pass whose result counts for nothing."""
    token = torch.tensor([policy.eos_ids[0]], device=device)
    ones = torch.ones((1, 1), dtype=torch.bool, device=device)
    return next(pack(Completions([token], token.unsqueeze(0), ones, group_size=1), 2))


def equal_passes(
    policy: PolicyModel, micro_batches: list[Packed], device: torch.device, at_least: int = 0
) -> list[tuple[Packed, bool]]:
    """As many passes on every rank (a collective): each gathers the weights of sharded layers together with the others.

    Returns:
        Micro-batches, and whether each is this rank's own; the rest are fillers.
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
    """``[B, T]`` statistics of completions in one packed pass without gradients (0 outside the mask)."""
    mask = completions.mask
    passes = equal_passes(policy, list(pack(completions, max_tokens)), mask.device)
    scored = [(packed.rows, policy(packed, sampling), own) for packed, own in passes]
    reshard_after_forward(policy)
    scored = [(rows, stats) for rows, stats, own in scored if own]
    found = []
    for name in (f.name for f in fields(TokenStats)):
        values = torch.zeros(mask.shape, device=mask.device)
        values = getattr(scored[0][1], name).new_zeros(mask.shape) if scored else values
        for rows, stats in scored:
            values[rows] = getattr(stats, name)
        found.append(values)
    return TokenStats(*found)
