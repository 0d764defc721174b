"""Token weights that correct the policy loss for completions of another distribution.

With ``d_t = policy's log-prob - sampler's log-prob`` of token t, the ratio of a token is ``r_t =
exp(d_t)`` (kinds ``token_...``) or that of its completion, ``exp(d_1 + ... + d_T)`` (kinds
``sequence_...``). A ratio above ``max_ratio`` is replaced by ``max_ratio`` (``..._truncate``) or
by 0 (``..._mask``). ``token_icepop`` also replaces one below ``1 / max_ratio`` by 0. Log-ratios are
held within 20 nats before ``exp``.

Truncation per token: https://fengyao.notion.site/off-policy-rl,
https://openreview.net/forum?id=8MHqvb4lK9. Masks per token: IcePop,
https://arxiv.org/abs/2510.18855, whose lower bound is a setting of its own. Per completion,
truncated and masked: https://richardli.xyz/rl-collapse. The other four kinds have the names of
TRL's ``vllm_importance_sampling_mode``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.sampling import importance_ratio

ICEPOP = "token_icepop"
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask", ICEPOP)


@dataclass(frozen=True)
class Correction:
    """How token weights follow from two log-probs of each token.

    Args:
        max_ratio: bound of the ratio, at least 1.
        kind: token_truncate | token_mask | sequence_truncate | sequence_mask | token_icepop.

    Raises:
        ValueError: a number out of range, or an unknown kind.
    """

    max_ratio: float
    kind: str = "token_truncate"

    def __post_init__(self) -> None:
        if not self.max_ratio >= 1:
            raise ValueError(
                f"max_ratio={self.max_ratio} must be at least 1, or null for no weights"
            )
        if self.kind not in CORRECTIONS:
            raise ValueError(
                f"correction={self.kind!r} is unknown; use one of {', '.join(CORRECTIONS)}"
            )

    def weights(
        self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the weights of all tokens.

        Args:
            logprobs: ``[B, T]`` of the policy, nats.
            sampler_logprobs: ``[B, T]`` of the sampler, nats.
            mask: ``[B, T]`` bool, True on completion tokens.

        Returns:
            ``[B, T]`` weights, and ``[B, T]`` bool: whose ratio was out of bounds.
        """
        ratio = self._ratio(logprobs, sampler_logprobs, mask)
        is_bounded = ratio > self.max_ratio
        if self.kind == ICEPOP:
            is_bounded |= ratio < 1 / self.max_ratio
        if not self.kind.endswith("_truncate"):
            return ratio.masked_fill(is_bounded, 0.0), is_bounded
        return ratio.clamp(max=self.max_ratio), is_bounded

    def _ratio(self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        if self.kind.startswith("token_"):
            return importance_ratio(logprobs, sampler_logprobs)
        differences = (logprobs - sampler_logprobs).masked_fill(~mask, 0.0)
        total = differences.sum(-1, keepdim=True)  # [B, 1]
        return importance_ratio(total, torch.zeros_like(total)).expand_as(logprobs)
