"""The figures of a rollout's updates: sums over tokens, reduced over data ranks once."""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import reference_kl
from rlif_lightning.learning.marks import picked
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.old_logprobs import fresh_tokens
from rlif_lightning.model.packing import Packed
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.sampling import importance_ratio


class UpdateMeter:
    """Sums of token figures over a rollout's updates; one collective reduces them at the end."""

    NAMES = (
        "tokens",
        "picked",
        "log_ratio",
        "log_ratio_picked",
        "clipped",
        "reference_kl",
        "entropy_picked",
    )
    REPLAYED = ("tokens", "ratio", "kl", "clipped")
    TAUGHT = ("tokens", "divergence", "tail")

    def __init__(self, device: torch.device):
        size = len(self.NAMES) + len(self.REPLAYED) + len(self.TAUGHT)
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)
        self.positions = (0, 0)  # those that hold a token, and all
        self.kept = self.sums.clone(), self.positions

    def keep(self) -> None:
        """Keep what was added: its mini-batch is complete."""
        self.kept = self.sums.clone(), self.positions

    def undo(self) -> None:
        """Drop what was added since :meth:`keep`."""
        self.sums, self.positions = self.kept[0].clone(), self.kept[1]

    def add_positions(self, packed: Packed) -> None:
        """Count the positions of one forward and backward pass, and those that hold a token."""
        held, positions = self.positions
        self.positions = (
            held + sum(tree.size for tree in packed.trees),
            positions + len(packed.input_ids),
        )

    @torch.no_grad()
    def add(self, batch: LossInputs, marks: Tensor, tokens: Tensor, objective: Objective) -> None:
        """Add one micro-batch; ``tokens`` ``[m, T]`` bool are those that it holds.

        Replayed tokens count in the figures of their own alone.
        """
        logprobs = batch.logprobs.detach()
        size = (logprobs - batch.old_logprobs).abs()
        clipped = objective.held(batch)
        if marks.dtype == torch.bool:  # these have a loss of their own, which nothing clips
            clipped = clipped & ~marks
        marks = picked(marks)
        kl = torch.zeros_like(size)
        if batch.ref_logprobs is not None:
            kl = reference_kl(logprobs, batch.ref_logprobs, "k3")
        ones = torch.ones_like(size)
        assert batch.entropy is not None
        if batch.teacher is not None:
            values = ones, objective.teacher_divergence(batch).detach(), batch.teacher.tail.exp()
            self._add(len(self.NAMES) + len(self.REPLAYED), values, tokens)
        values = (
            ones,
            marks.to(ones),
            size,
            size * marks,
            clipped.to(ones),
            kl,
            batch.entropy.detach() * marks,
        )
        if batch.is_replayed is None:
            self._add(0, values, tokens)
            return
        self._add(0, values, tokens & fresh_tokens(batch))
        kl = reference_kl(batch.old_logprobs, logprobs, "k3")
        ratio = importance_ratio(logprobs, batch.old_logprobs)
        values = ones, ratio, kl, clipped.to(ones)
        self._add(len(self.NAMES), values, tokens & batch.is_replayed.unsqueeze(1))

    def _add(self, first: int, values: tuple[Tensor, ...], tokens: Tensor) -> None:
        stacked = torch.where(tokens, torch.stack(values), 0.0)  # [figures, m, T]
        sums = stacked.sum((1, 2), dtype=torch.float64)
        self.sums[first : first + len(values)].add_(sums)  # `+=` would copy them once more

    def means(self) -> dict[str, Tensor]:
        """Return ``policy/...`` means over fresh tokens, and ``update/...`` (a collective)."""
        tokens, picked, log_ratio, log_ratio_picked, clipped, kl, entropy_picked = all_rank_sum(
            self.sums[: len(self.NAMES)]
        )
        held, positions = all_rank_sum(self.sums.new_tensor(self.positions))
        count = tokens.clamp(min=1)
        return {
            "policy/log_ratio": log_ratio / count,
            "policy/log_ratio_picked": log_ratio_picked / picked.clamp(min=1),
            "policy/entropy_picked": entropy_picked / picked.clamp(min=1),
            "policy/picked_fraction": picked / count,
            "policy/clip_fraction": clipped / count,
            "policy/reference_kl": kl / count,
            "update/tokens": positions,
            "update/padding": 1 - held / positions.clamp(min=1),
        }

    def replayed_means(self) -> dict[str, Tensor]:
        """Return ``replay/...`` means over replayed tokens, NaN without any (a collective)."""
        first = len(self.NAMES)
        tokens, *sums = all_rank_sum(self.sums[first : first + len(self.REPLAYED)])
        names = ("replay/ratio", "replay/kl", "replay/clip_fraction")
        return {name: value / tokens for name, value in zip(names, sums, strict=True)}

    def taught_means(self) -> dict[str, Tensor]:
        """Return ``teacher/...`` means over taught tokens, NaN without any (a collective)."""
        tokens, *sums = all_rank_sum(self.sums[-len(self.TAUGHT) :])
        names = (f"teacher/{name}" for name in self.TAUGHT[1:])
        return {name: value / tokens for name, value in zip(names, sums, strict=True)}
