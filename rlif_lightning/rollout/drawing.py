"""From hidden states to tokens: the head, the rule, the draw, and the statistics of the very same logits."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from rlif_lightning.model.head import pieces
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.token_stats import forbid, softmax_parts, token_stats
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.records import TokenStats
from rlif_lightning.sampling import Sampling, sample_weights, truncate_logits


class Drawer:
    """Draws next tokens; neither waits for the device nor uploads anything.

    Args:
        policy: its head and rule.
        sampling: how to draw.
        device: of the hidden states.
    """

    def __init__(self, policy: PolicyModel, sampling: Sampling, device: torch.device):
        self.policy, self.sampling = policy, sampling
        self.rule = policy.rule(sampling, device)

    def draw(
        self, hidden: Tensor, uniforms: Tensor, may_end: Tensor | None, closing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Each row's next token ``[n]`` and its statistics ``[n, 3]``.

        Args:
            hidden: ``[n, H]`` last hidden states.
            uniforms: ``[n]`` in [0, 1).
            may_end: ``[n]`` bool: which rows may end; None = all.
            closing: ``[n]`` bool: rows that get ``policy.stop_id`` instead of what is drawn; None =
                none.
        """
        tokens, stats = [], []
        for start in range(0, len(hidden), size := self.policy.rows_at_once(hidden.device)):
            raw = self.policy.head(hidden[start : start + size])
            for piece in pieces(raw):
                rows = slice(start + piece.start, start + min(piece.stop, len(raw)))
                ends, closes = (
                    None if given is None else given[rows] for given in (may_end, closing)
                )
                drawn = self._draw_piece(raw[piece], uniforms[rows], ends, closes)
                tokens.append(drawn[0])
                stats.append(drawn[1])
        if len(tokens) == 1:
            return broadcast_from_first(tokens[0]), stats[0]
        return broadcast_from_first(torch.cat(tokens)), torch.cat(stats)

    def _draw_piece(
        self, raw: Tensor, uniforms: Tensor, may_end: Tensor | None, closing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.rule.apply(raw)
        forbidden = self.rule.forbidden(may_end)
        parts = softmax_parts(logits if forbidden is None else forbid(logits, *forbidden))
        weights = parts.weights
        if self.sampling.top_k or self.sampling.top_p < 1:
            kept = truncate_logits(weights.log(), self.sampling.top_k, self.sampling.top_p)
            weights = weights.masked_fill(kept == -torch.inf, 0.0)
        greedy = self.sampling.temperature == 0
        tokens = weights.argmax(-1) if greedy else sample_weights(weights, uniforms)
        if closing is not None:
            tokens = tokens.masked_fill(closing, self.policy.stop_id)
        stats = token_stats(logits, tokens, forbidden, parts)
        return tokens, torch.stack([getattr(stats, f.name) for f in fields(TokenStats)], 1)


class TokenReading:
    """Tokens on their way to the host, which does something else meanwhile.

    Args:
        size: the most tokens.
        device: where they come from.
    """

    def __init__(self, size: int, device: torch.device):
        self.landed = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def start(self, tokens: Tensor) -> None:
        """Begin to read ``[n]`` tokens."""
        self.number = len(tokens)
        self.landed[: self.number].copy_(tokens, non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()

    def finish(self) -> Tensor:
        """Wait for the tokens (and for nothing that was started after them); ``[n]`` on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.landed[: self.number]
