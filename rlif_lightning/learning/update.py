"""How a rollout is cut into mini-batches, of which each is one optimiser step.

A pass over the rollout shuffles its groups and splits them into mini-batches of whole groups. The
shuffle is one of all data ranks' prompts together, which are dealt out one by one, so a mini-batch
holds the same groups on any number of data ranks. With 4 prompts on each of 2 data ranks, and 2
updates in a pass:

    prompts of the rollout    0 1 2 3 4 5 6 7      prompt i is group i // 2 of data rank i % 2
    shuffled and split        5 2 7 0 | 6 1 3 4
    data rank 0               0 1 (prompts 0, 2)   2 3 (prompts 4, 6)
    data rank 1               2 3 (prompts 5, 7)   0 1 (prompts 1, 3)

Replayed groups (``replay.py``) are shuffled and split on their own, so every mini-batch gets its
share of them and has the rollout's own groups that it would have without them. They are numbered
behind the rollout's own.

With G completions in a group, group p is completions ``p * G`` to ``p * G + G - 1`` of the ``[B,
T]`` tensors of its data rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.old_logprobs import SOURCES
from rlif_lightning.records import Completions, Rollout
from rlif_lightning.sampling import purpose_seeds
from rlif_lightning.setting_types import check_types


@dataclass(frozen=True)
class UpdatePlan:
    """How a rollout is cut into optimiser steps.

    Args:
        updates_per_rollout: mini-batches of whole groups in one pass, one optimiser step each.
        epochs_per_rollout: passes over the rollout.
        old_logprobs: sampler | rescored (by one more pass): the old log-probs of all mini-batches
            but the first, which has those of its own forward pass.
        micro_batch_tokens: token budget of one forward and backward pass. Memory depends on it,
            results by rounding alone. It is halved when memory runs out.
        max_grad_norm: the gradient's norm is clipped to this; null = not clipped.

    Raises:
        ValueError: a number out of range, or an unknown name.
    """

    updates_per_rollout: int = 4
    epochs_per_rollout: int = 1
    old_logprobs: str = "sampler"
    micro_batch_tokens: int = 8192
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("updates_per_rollout", "epochs_per_rollout", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} must be positive, or null for no clipping"
            )
        if self.old_logprobs not in SOURCES:
            raise ValueError(
                f"old_logprobs={self.old_logprobs!r} is unknown; use one of {', '.join(SOURCES)}"
            )

    def check(self, num_prompts: int) -> None:
        """Refuse a rollout with fewer prompts than updates.

        Raises:
            ValueError: names both settings.
        """
        if num_prompts < self.updates_per_rollout:
            raise ValueError(
                f"data.prompts_per_rollout={num_prompts} is less than"
                f" model.update.updates_per_rollout={self.updates_per_rollout}: an update would"
                " have no group; raise the one or lower the other"
            )

    def rescores(self, rollout: Rollout) -> bool:
        """Say whether a rollout's old log-probs need one more pass.

        An engine's completions need none: the policy's log-probs are in their statistics already.
        """
        return self.old_logprobs == "rescored" and rollout.engine_logprobs is None

    @property
    def num_updates(self) -> int:
        """Optimiser steps per rollout."""
        return self.updates_per_rollout * self.epochs_per_rollout

    def minibatches(
        self,
        num_prompts: int,
        rollout_number: int,
        seed: int,
        data_rank: int,
        num_data_ranks: int,
        num_replayed: int = 0,
    ) -> Iterator[list[int]]:
        """Yield this data rank's groups of each mini-batch, possibly none.

        Args:
            num_prompts: P, the same on every data rank.
            rollout_number: counted from 0; it seeds the shuffle together with ``seed``.
            seed: of the run.
            data_rank: of this process.
            num_data_ranks: that the prompts were dealt out to.
            num_replayed: replayed groups on all data ranks, dealt out likewise.
        """

        def own(part: np.ndarray, first: int) -> list[int]:
            mine = part[part % num_data_ranks == data_rank]
            return sorted(first + int(i) // num_data_ranks for i in mine)

        for epoch in range(self.epochs_per_rollout):
            shuffle = np.random.default_rng(purpose_seeds("shuffle", seed, rollout_number, epoch))
            sizes = num_prompts * num_data_ranks, num_replayed
            orders = [shuffle.permutation(size) for size in sizes]
            parts = [np.array_split(order, self.updates_per_rollout) for order in orders]
            for new, old in zip(*parts, strict=True):
                yield own(new, 0) + own(old, num_prompts)


@dataclass(frozen=True)
class MiniBatch:
    """Some groups of a rollout, for one optimiser step.

    Attributes:
        inputs: ``[b, T]`` loss inputs; the objective orders tokens by their ``logprobs``.
        completions: the same groups' tokens, for a forward pass.
        index: ``[b]`` int64, which of the update's B completions these are.
        is_on_policy: the policy has not moved since the rollout. The old log-probs are then those
            of the mini-batch's own training forward, and the ratio is exactly 1. Replayed
            completions keep their own old log-probs all the same.
    """

    inputs: LossInputs
    completions: Completions
    index: Tensor
    is_on_policy: bool = False


def select_groups(
    inputs: LossInputs, completions: Completions, groups: Sequence[int], is_on_policy: bool = False
) -> MiniBatch:
    """Select some groups of an update, whose loss inputs are ``[B, T]``."""
    index = completions.index(groups)
    chosen = completions.groups(groups, index)
    return MiniBatch(select_completions(inputs, index), chosen, index, is_on_policy)


def select_completions(inputs: LossInputs, index: Tensor) -> LossInputs:
    """Select the loss inputs of some completions: ``[B, T]`` to ``[b, T]``, ``[B]`` to ``[b]``."""
    given = {name: value for name, value in vars(inputs).items() if value is not None}
    return LossInputs(
        **{name: value[index] if value.ndim else value for name, value in given.items()}
    )
