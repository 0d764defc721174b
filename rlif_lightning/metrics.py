"""Evaluation metrics as torchmetrics classes; every state declares how ranks combine it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from rlif_lightning.masked import masked_sum


def pass_at_k(num_correct: Tensor, num_samples: int, k: int) -> Tensor:
    """Unbiased estimate that at least one of k samples is right: ``1 - C(n - c, k) / C(n, k)``, elementwise.

    Source: https://arxiv.org/abs/2107.03374.

    Args:
        num_correct: ``[P]`` right samples c of each problem.
        num_samples: n samples of each problem.
        k: at most n.

    Raises:
        ValueError: k is not in [1, n].
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must lie in [1, {num_samples}], the number of samples of each problem")
    drawn = torch.arange(k, dtype=torch.float64, device=num_correct.device)
    wrong = num_samples - num_correct.double().unsqueeze(-1)
    # With fewer than k wrong samples one factor is 0, whatever the sign of those after it.
    return 1 - ((wrong - drawn) / (num_samples - drawn)).prod(-1)


class _RunningMean(Metric):
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, mask: Tensor | None = None) -> None:
        counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        self.total = self.total + masked_sum(values.double(), counted)  # not in place: Lightning mixes inference modes
        self.count = self.count + counted.sum()

    def compute(self) -> Tensor:
        """The mean over everything seen on all ranks; NaN if nothing was."""
        return self.total / self.count


class PassAtK(_RunningMean):
    """Mean over problems of the unbiased pass@k (:func:`pass_at_k`)."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def update(self, correct: Tensor) -> None:
        """Add ``[P, n]`` bool verdicts, n >= k samples of each of P problems."""
        self._add(pass_at_k(correct.sum(-1), correct.shape[-1], self.k))


class MajorityAtK(_RunningMean):
    """Share of problems whose most frequent answer is right."""

    def update(self, correct: Tensor) -> None:
        """Add ``[P]`` bool: whether the largest cluster's answer is right (False where there is no answer)."""
        self._add(correct)


class AnswerDiversity(_RunningMean):
    """Distinct answers of a problem as a share of its samples, averaged over problems."""

    def update(self, cluster_ids: list[list[int | None]]) -> None:
        """Add the cluster ids of the samples of each problem, None where a sample has no answer."""
        shares = [len(set(ids) - {None}) / len(ids) for ids in cluster_ids]
        self._add(torch.tensor(shares))


class TokenEntropy(_RunningMean):
    """Mean entropy (nats) over all completion tokens."""

    def update(self, entropy: Tensor, mask: Tensor) -> None:
        """Add ``[B, T]`` entropies with their mask."""
        self._add(entropy, mask)


class Mean(_RunningMean):
    """Mean of a figure that each completion or problem has one of."""

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        self._add(values)
