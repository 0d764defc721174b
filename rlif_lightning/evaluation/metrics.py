"""Evaluation metrics as torchmetrics classes; every state declares how processes combine it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from rlif_lightning.masked import masked_sum
from rlif_lightning.processes.collectives import is_distributed


def pass_at_k(num_correct: Tensor, num_samples: int, k: int) -> Tensor:
    """Estimate unbiased that one of k samples is right: ``1 - C(n - c, k) / C(n, k)``, elementwise.

    Source: https://arxiv.org/abs/2107.03374.

    Args:
        num_correct: ``[P]`` right samples c of each problem.
        num_samples: n samples of each problem.
        k: at most n.

    Raises:
        ValueError: k is not in [1, n].
    """
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"k={k} must lie in [1, {num_samples}], the number of samples of each problem"
        )
    drawn = torch.arange(k, dtype=torch.float64, device=num_correct.device)
    wrong = num_samples - num_correct.double().unsqueeze(-1)
    # With fewer than k wrong samples one factor is 0, whatever the sign of those after it.
    return 1 - ((wrong - drawn) / (num_samples - drawn)).prod(-1)


class ProblemMetric(Metric):
    """The ratio of two sums over problems, kept per problem so that problems can be resampled.

    One state, ``[P, 3]`` of (row in the data set, total, weight) per update, concatenated over
    processes. ``compute`` and ``table`` are collectives: every process must have been updated.

    Attributes:
        share: whether a problem's ratio lies in [0, 1].
    """

    full_state_update = False
    share = True
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__(distributed_available_fn=is_distributed)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def _add(self, totals: Tensor, weights: Tensor, index: Tensor | None) -> None:
        if index is None:
            seen = sum(map(len, self.rows))
            index = torch.arange(seen, seen + len(totals), device=totals.device)
        self.rows.append(torch.stack([index.double(), totals.double(), weights.double()], 1))

    def compute(self) -> Tensor:
        """Return the figure over what all processes have seen; NaN if nothing."""
        table = self._sorted()
        return table[:, 1].sum() / table[:, 2].sum()

    def table(self) -> Tensor:
        """Return ``[N, 3]`` float64: row in the data set, total and weight of every problem."""
        with self.sync_context():
            return self._sorted()

    def _sorted(self) -> Tensor:
        table = (
            dim_zero_cat(self.rows) if len(self.rows) else torch.zeros((0, 3), dtype=torch.float64)
        )
        return table[table[:, 0].argsort(stable=True)]


class PassAtK(ProblemMetric):
    """Mean over problems of the unbiased pass@k (:func:`pass_at_k`)."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def update(self, correct: Tensor, index: Tensor | None = None) -> None:
        """Add ``[P, n]`` bool verdicts on n >= k samples of P problems, and their ``[P]`` rows."""
        shares = pass_at_k(correct.sum(-1), correct.shape[-1], self.k)
        self._add(shares, torch.ones_like(shares), index)


class MajorityAtK(ProblemMetric):
    """Share of problems whose most frequent answer is right."""

    def update(self, correct: Tensor, index: Tensor | None = None) -> None:
        """Add ``[P]`` bool: whether the largest cluster's answer is right (False without one)."""
        self._add(correct.double(), torch.ones_like(correct), index)


class AnswerDiversity(ProblemMetric):
    """Distinct answers of a problem as a share of its samples, averaged over problems."""

    def update(self, cluster_ids: list[list[int | None]], index: Tensor | None = None) -> None:
        """Add the cluster ids of the samples of each problem, None where a sample has no answer."""
        device = None if index is None else index.device
        shares = [len(set(ids) - {None}) / len(ids) for ids in cluster_ids]
        totals = torch.tensor(shares, dtype=torch.float64, device=device)
        self._add(totals, torch.ones_like(totals), index)


class TokenEntropy(ProblemMetric):
    """Mean entropy (nats) over all completion tokens."""

    share = False

    def update(self, entropy: Tensor, mask: Tensor, index: Tensor | None = None) -> None:
        """Add ``[B, T]`` entropies, their mask and the problems' ``[P]`` rows (None: B = P)."""
        problems = len(entropy) if index is None else len(index)
        flat = entropy.double().view(problems, -1), mask.view(problems, -1)
        self._add(masked_sum(*flat, dim=-1), flat[1].sum(-1), index)


class Mean(ProblemMetric):
    """Mean of a figure that each completion or problem has one of.

    Args:
        share: whether the figure lies in [0, 1].
    """

    def __init__(self, share: bool = False):
        super().__init__()
        self.share = share

    def update(self, values: Tensor, index: Tensor | None = None) -> None:
        """Add ``[P]`` or ``[P, n]`` values, n for each problem, and their ``[P]`` rows.

        NaN = there is none.
        """
        values = values.double().view(len(values), -1)
        self._add(values.nansum(-1), (~values.isnan()).sum(-1), index)


class Labels(Metric):
    """The label of each problem as UTF-8 bytes, which processes can exchange as tensors."""

    full_state_update = False
    index: list[Tensor]
    lengths: list[Tensor]
    characters: list[Tensor]

    def __init__(self) -> None:
        super().__init__(distributed_available_fn=is_distributed)
        for state in ("index", "lengths", "characters"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, labels: Sequence[str], index: Tensor) -> None:
        """Add P labels and the ``[P]`` rows of their problems."""
        encoded = [label.encode() for label in labels]
        self.index.append(index.long())
        self.lengths.append(index.new_tensor([len(label) for label in encoded]))
        self.characters.append(index.new_tensor(list(b"".join(encoded)), dtype=torch.uint8))

    def compute(self) -> list[str]:
        """Return the label of every problem of all processes, by row."""
        index, lengths = dim_zero_cat(self.index).tolist(), dim_zero_cat(self.lengths).tolist()
        text, ends = bytes(dim_zero_cat(self.characters).tolist()), np.cumsum(lengths).tolist()
        labels = [
            text[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)
        ]
        return [
            label for _, label in sorted(zip(index, labels, strict=True), key=lambda pair: pair[0])
        ]
