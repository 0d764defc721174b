"""Which rows make a batch: the same for every process, resumable in the middle of an epoch.

Read `EncodedSplit` (a tokenised split), then the two loaders. They are plain iterables, not torch
``DataLoader``s. Everything is tokenised before, so worker processes would have nothing to do.
Lightning neither wraps plain iterables in a ``DistributedSampler`` nor replaces their order. How a
problem becomes a text is in ``prompt_format.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlif_lightning.data.columns import check_column, column_names
from rlif_lightning.records import Prompts, root_column, value_at

if TYPE_CHECKING:
    from datasets import Dataset

    from rlif_lightning.data.turns import EnvironmentTask


Curriculum = Callable[[np.ndarray, int, int], np.ndarray | None]


@dataclass(frozen=True)
class EncodedSplit:
    """One split: ``token_ids[k]`` belongs to row ``rows[k]`` of ``dataset``.

    Attributes:
        dataset: all rows of the split, kept ones or not.
        rows: ``[K]`` rows in use, ascending.
        token_ids: their prompts, int32 arrays ``[L]``; None = tokenised anew for each batch.
        render: makes a row's text again, so that the texts of a large data set needn't be held in
            memory; with a second argument, around the problem (``PromptRenderer.render``).
        encode: tokenises texts.
        messages: makes a row's conversation; None without a chat.
        environment: what the completions are turns of; None = single turns.
        known_columns: the names of all columns, where :meth:`only` has hidden some.
    """

    dataset: Dataset
    rows: np.ndarray
    token_ids: list[np.ndarray] | None
    render: Callable[..., str]
    encode: Callable[[list[str]], list[np.ndarray]]
    messages: Callable[[dict[str, Any]], list[dict[str, str]] | None] | None = None
    environment: EnvironmentTask | None = None
    known_columns: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def problems(self, paths: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each row in use with its number in ``dataset``.

        Args:
            paths: dotted paths of the columns that are read; None = all columns.
        """
        for row in self.rows.tolist():
            problem = (
                self.dataset[row] if self.dataset.column_names else {}
            )  # (`only` may leave no column)
            if paths is not None:
                known = [path for path in paths if root_column(problem, path) is not None]
                problem = {path: value_at(problem, path) for path in known}
            yield row, problem

    def only(self, paths: Sequence[str]) -> EncodedSplit:
        """Return the same problems with the columns of these dotted paths alone."""
        roots = {root_column(self.dataset.column_names, path) for path in paths} - {None}
        known = self.known_columns or column_names(self.dataset.features)
        narrow = self.dataset.select_columns(sorted(map(str, roots)))
        return replace(self, dataset=narrow, known_columns=known)

    def check_column(self, named: str, path: str) -> None:
        """Refuse a column that the training problems do not have.

        Args:
            named: what names it, in messages.
            path: of the column.

        Raises:
            ValueError: names the columns of the data set, hidden ones too.
        """
        check_column(named, path, self.dataset, "the train split", self.known_columns)

    def batch(self, positions: list[int]) -> Prompts:
        """Return the prompts at these positions of ``rows``."""
        index = self.rows[positions].tolist()
        problems = [self.dataset[row] for row in index]
        texts = [self.render(problem) for problem in problems]
        kept = self.token_ids
        token_ids = self.encode(texts) if kept is None else [kept[k] for k in positions]
        return Prompts(
            token_ids=[torch.from_numpy(ids.astype(np.int64)) for ids in token_ids],
            texts=texts,
            columns={
                name: [problem[name] for problem in problems] for name in self.dataset.column_names
            },
            index=torch.tensor(index, dtype=torch.int64),
            messages=None if self.messages is None else [self.messages(p) or [] for p in problems],
            environment=self.environment,
        )


def continued_place(
    batches_drawn: int, num_problems: int, before: int, now: int
) -> tuple[int, int]:
    """Return the place in the same order with batches of another size, and the problems skipped.

    The order of an epoch does not depend on the size. The next batch is the first whole one after
    the problems that were drawn, or the epoch's last one.

    Args:
        batches_drawn: with the former size.
        num_problems: of the split.
        before: the former size, in prompts.
        now: the new size.

    Returns:
        The number of batches of the new size that count as drawn, and the problems of this epoch
        that are left out (below 0: that come again).
    """
    epoch, batch = divmod(batches_drawn, num_problems // before)
    last = num_problems // now - 1
    reached = min(-(-batch * before // now), last) if batch else 0
    return epoch * (last + 1) + reached, reached * now - batch * before


class TrainLoader:
    """Endless shuffled batches, an epoch at a time, whose place is one number.

    Batch n is a function of (seed, n) alone: it is batch ``n % len`` of epoch ``n // len``, whose
    order is a permutation drawn from (seed, epoch). Resuming therefore goes on with the very next
    batch, in the middle of an epoch too, and an epoch that the trainer cuts short
    (``limit_train_batches``) goes on where it was cut.

    Args:
        split: the tokenised problems.
        prompts_per_rollout: P, over all processes; an incomplete last batch is dropped.
        seed: seed of the order.
        num_replicas: number of processes that share a batch.
        rank: this process among them; it gets prompts rank, rank + num_replicas, ... of each batch.
        curriculum: gives the order of an epoch, as :meth:`ProblemSource.order`; None = shuffled.
        keeps_orders: whether an order depends on more than its arguments, so that checkpoints keep
            those of epochs that have begun.
    """

    def __init__(
        self,
        split: EncodedSplit,
        prompts_per_rollout: int,
        seed: int,
        num_replicas: int,
        rank: int,
        curriculum: Curriculum | None = None,
        keeps_orders: bool = False,
    ) -> None:
        self.split = split
        self.prompts_per_rollout = prompts_per_rollout
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank, self.curriculum, self.keeps_orders = rank, curriculum, keeps_orders
        self.batches_drawn = 0
        self._orders: dict[int, np.ndarray] = {}  # by epoch, from that of the last batch on

    def __len__(self) -> int:
        return len(self.split) // self.prompts_per_rollout

    def __iter__(self) -> Iterator[Prompts]:
        for _ in range(len(self)):
            # Counted before it is yielded: a checkpoint is written while the trainer works on
            # the batch.
            self.batches_drawn += 1
            yield self.upcoming(0)

    def upcoming(self, ahead: int) -> Prompts:
        """Return the batch so many after the one that was drawn last; the place does not change."""
        last = self.batches_drawn - 1
        epoch, batch = divmod(last + ahead, len(self))
        if epoch not in self._orders:
            kept = {e: order for e, order in self._orders.items() if e >= last // len(self)}
            given = self.curriculum and self.curriculum(self.split.rows, self.seed, epoch)
            shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.split))
            self._orders = kept | {epoch: shuffled if given is None else self._checked(given)}
        start = batch * self.prompts_per_rollout
        whole = self._orders[epoch][start : start + self.prompts_per_rollout]
        return self.split.batch(whole[self.rank :: self.num_replicas].tolist())

    def _checked(self, order: np.ndarray) -> np.ndarray:
        if not np.array_equal(np.sort(order), np.arange(len(self.split))):
            raise ValueError(
                f"the source's order is no permutation of 0..{len(self.split) - 1}: {order!s:.100};"
                " return each place once"
            )
        return order

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order, which checkpoints hold, and what the order depends on."""
        kept = {epoch: torch.from_numpy(order) for epoch, order in self._orders.items()}
        return ({"orders": kept} if self.keeps_orders else {}) | {
            "batches_drawn": self.batches_drawn,
            "seed": self.seed,
            "prompts_per_rollout": self.prompts_per_rollout,
            "num_prompts": len(self.split),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch drawn, also with another size (:func:`continued_place`).

        Raises:
            ValueError: the checkpoint was made with another number of problems or another seed, so
                its order cannot be continued.
        """
        for name, value in (("seed", self.seed), ("num_prompts", len(self.split))):
            if state_dict[name] != value:
                raise ValueError(
                    f"{name}={value}, but the checkpoint was made with {state_dict[name]}: its"
                    " order of prompts cannot be continued; resume with the same data settings, or"
                    " begin a new run with its weights (fork_from instead of ckpt_path)"
                )
        if self.keeps_orders:
            kept = state_dict.get("orders", {})
            self._orders = {int(epoch): order.numpy() for epoch, order in kept.items()}
        drawn, before = state_dict["batches_drawn"], state_dict["prompts_per_rollout"]
        if before != self.prompts_per_rollout:
            drawn, _ = continued_place(drawn, len(self.split), before, self.prompts_per_rollout)
        self.batches_drawn = drawn


class ValidationLoader:
    """The problems in order, each once over all processes.

    Every process gets the same number of batches. A last batch with fewer prompts than processes
    joins the batch before it, so that no process has an empty batch.

    Args:
        split: the tokenised problems, at least one per process.
        prompts_per_rollout: prompts per batch, over all processes.
        num_replicas: number of processes that share a batch.
        rank: this process among them.
    """

    def __init__(
        self, split: EncodedSplit, prompts_per_rollout: int, num_replicas: int, rank: int
    ) -> None:
        self.split = split
        self.num_replicas = num_replicas
        self.rank = rank
        self.starts = list(range(0, len(split), prompts_per_rollout))
        if len(self.starts) > 1 and len(split) - self.starts[-1] < num_replicas:
            self.starts.pop()

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Prompts]:
        for start, stop in zip(self.starts, [*self.starts[1:], len(self.split)], strict=True):
            yield self.split.batch(list(range(start + self.rank, stop, self.num_replicas)))
