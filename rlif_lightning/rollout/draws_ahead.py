"""Draws that are made ahead of their rollouts, in a background thread, while the policy trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from rlif_lightning.records import Prompts
from rlif_lightning.rollout.external_samples import Draws
from rlif_lightning.sampling import Sampling

THREAD = "draws-ahead"
POLL_SECONDS = 0.05  # between two attempts to cancel a request that was about to connect


@dataclass(frozen=True)
class Asked:
    """What a sampler is asked for: the prompts of one rollout, with a request for each.

    Attributes:
        rollout_number: a counter of the sampling.
        group_size: G completions for each prompt.
        prompt_ids: token ids of P prompts.
        requests: P requests; their seeds depend on the rollout.
        sampling: how to draw.
        prompts: of the rollout.
    """

    rollout_number: int
    group_size: int
    prompt_ids: Sequence[list[int]]
    requests: Sequence[dict[str, Any]]
    sampling: Sampling
    prompts: Prompts = field(compare=False, repr=False)


@dataclass(frozen=True)
class DrawAhead:
    """One draw that was started, or has been made.

    Attributes:
        asked: what was asked for.
        weights_of: the rollout before whose update the policy had the weights that draw it.
        future: the completions.
    """

    asked: Asked
    weights_of: int
    future: Future[Draws]


class DrawsAhead:
    """The draws of coming rollouts, made one after another in one thread.

    The thread ends with its last draw. It makes no collective.

    Args:
        draw: draws what it is asked for.

    Attributes:
        pending: draws that nobody has claimed.
        num_discarded: draws that were made, or begun, for nothing.
    """

    def __init__(self, draw: Callable[[Asked], Draws]):
        self.draw = draw
        self.pending: list[DrawAhead] = []
        self.num_discarded = 0
        self.pool: ThreadPoolExecutor | None = None
        self.started: list[Future[Draws]] = []

    def start(self, orders: Sequence[Asked], weights_of: int) -> None:
        """Start the draws of coming rollouts, in order; none may be pending."""
        self.pool = ThreadPoolExecutor(1, THREAD)
        self.started = [self.pool.submit(self.draw, asked) for asked in orders]
        self.pool.shutdown(wait=False)  # what was submitted is still done
        self.pending = [
            DrawAhead(asked, weights_of, future)
            for asked, future in zip(orders, self.started, strict=True)
        ]

    def claim(self, asked: Asked) -> DrawAhead | None:
        """Remove a rollout's draw; return it, or drop it if it is not what is asked for now."""
        number = asked.rollout_number
        found = [draw for draw in self.pending if draw.asked.rollout_number == number]
        self.pending = [draw for draw in self.pending if draw.asked.rollout_number != number]
        claimed = next((draw for draw in found if draw.asked == asked), None)
        self.num_discarded += len(found) - (claimed is not None)
        return claimed

    def wait(self) -> None:
        """Wait until no draw is being made. Results and errors stay for who claims them."""
        wait(self.started)

    def discard(self, cancel: Callable[[], None]) -> int:
        """Drop all draws, made or not, and end the thread.

        Args:
            cancel: makes a draw that is being made end soon; is called until it has ended.

        Returns:
            How many draws nobody had claimed.
        """
        count, self.pending = len(self.pending), []
        self.num_discarded += count
        for future in self.started:
            future.cancel()
        while wait(self.started, POLL_SECONDS).not_done:
            cancel()
        if self.pool is not None:
            self.pool.shutdown()
        return count
