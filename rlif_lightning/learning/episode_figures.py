"""Figures of a rollout's episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.environments.base import STOPS
from rlif_lightning.masked import extents
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Rollout


def episode_metrics(rollout: Rollout) -> dict[str, Tensor | float]:
    """Return how many turns and observed tokens episodes have, and how they stop (a collective).

    ``episode/turns`` and ``episode/observed`` are means over the episodes of all data ranks, and
    ``episode/<stop>`` is a share of them. ``episode/contexts``, a mean, is there under ``thoughts:
    fork``. There are no such figures for single turns.
    """
    if rollout.episodes is None:
        return {}
    stops = [[float(episode.stop == stop) for stop in STOPS] for episode in rollout.episodes]
    turns = [[float(len(episode.turns)), 1.0] for episode in rollout.episodes]
    observed = (extents(rollout.mask) - rollout.lengths).double()  # [B]
    counts = torch.tensor([a + b for a, b in zip(turns, stops, strict=True)], dtype=torch.float64)
    counts = torch.cat([observed[:, None], counts.to(observed.device)], 1).sum(0)
    tokens, taken, number, *shares = all_rank_sum(counts).unbind()
    means = {"turns": taken, "observed": tokens, **dict(zip(STOPS, shares, strict=True))}
    if rollout.context_starts is not None:
        means["contexts"] = number + all_rank_sum(rollout.context_starts.sum())
    return {f"episode/{name}": value / number for name, value in means.items()}
