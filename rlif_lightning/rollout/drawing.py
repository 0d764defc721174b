"""Draw tokens from hidden states, with the statistics of the logits they are drawn from."""

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
    """The draw of next tokens; it neither waits for the device nor uploads anything.

    Args:
        policy: whose head and rule are used.
        sampling: how to draw.
        device: of the hidden states.
    """

    def __init__(self, policy: PolicyModel, sampling: Sampling, device: torch.device):
        self.policy, self.sampling = policy, sampling
        self.rule = policy.rule(sampling, device)

    def draw(
        self, hidden: Tensor, uniforms: Tensor, may_end: Tensor | None, closing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Draw each row's next token ``[n]``, and compute its statistics ``[n, 3]``.

        Args:
            hidden: ``[n, H]`` last hidden states.
            uniforms: ``[n]`` in [0, 1).
            may_end: ``[n]`` bool: which rows may end; None = all.
            closing: ``[n]`` bool: rows that get ``policy.stop_id`` instead of the drawn token; None
                = none.
        """
        tokens, stats = [], []
        for start in range(0, len(hidden), size := self.policy.rows_at_once(hidden.device)):
            raw = self.policy.head(hidden[start : start + size])  # [rows, V]
            for piece in pieces(raw):
                rows = slice(start + piece.start, start + min(piece.stop, len(raw)))
                ends, closes = (
                    None if given is None else given[rows] for given in (may_end, closing)
                )
                drawn = self._draw_piece(raw[piece], uniforms[rows], ends, closes)
                tokens.append(drawn[0])
                stats.append(drawn[1])
        # Processes of one data rank draw the same tokens, whatever rounding does to their logits.
        if len(tokens) == 1:
            return broadcast_from_first(tokens[0]), stats[0]
        return broadcast_from_first(torch.cat(tokens)), torch.cat(stats)

    def _draw_piece(
        self, raw: Tensor, uniforms: Tensor, may_end: Tensor | None, closing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.rule.apply(raw)  # [n, V]
        forbidden = self.rule.forbidden(may_end)  # made once, for drawing and for the statistics
        parts = softmax_parts(logits if forbidden is None else forbid(logits, *forbidden))
        weights = parts.weights  # [n, V]
        # Truncation changes what is drawn, and not the statistics: these are the policy's own.
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
    """A copy of tokens to the host that runs while the host does other work.

    Args:
        size: the most tokens.
        device: that they are copied from.
    """

    def __init__(self, size: int, device: torch.device):
        self.landed = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def start(self, tokens: Tensor) -> None:
        """Start to copy ``[n]`` tokens."""
        self.number = len(tokens)
        self.landed[: self.number].copy_(tokens, non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()

    def finish(self) -> Tensor:
        """Wait for the tokens, and for no work started after them; return ``[n]`` on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.landed[: self.number]
