"""Threads of an ``EnvironmentPool``: none is waited for, and one that hangs is replaced."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlif_lightning.environments.base import Episode, Observation, Turn, described


@dataclass(frozen=True)
class Answer:
    """What an environment answered.

    Attributes:
        number: of the episode.
        observation: what the policy sees next; "" = nothing.
        episode: the whole episode, once it is over; None = it goes on.
    """

    number: int
    observation: Observation = ""
    episode: Episode | None = None


@dataclass
class Live:
    """An episode that goes on.

    Attributes:
        number: of the episode.
        max_turns: most turns that it can have.
        environment: its instance, once a thread has made it.
        turns: so far.
        started: when a thread began to work for it; infinite where none does.
        is_given_up: whether the pool has forgotten it.
    """

    number: int
    max_turns: int
    environment: Any = None
    turns: list[Turn] = field(default_factory=list)
    started: float = math.inf
    is_given_up: bool = False

    @property
    def since(self) -> float:
        """When its environment began to work; infinite where none does, or waits for another."""
        return max(self.started, getattr(self.environment, "began", -math.inf))

    def failed(self, reason: str, stop: str = "environment_error") -> Answer:
        """Return the answer that ends it by a failure."""
        episode = Episode(tuple(self.turns), stop, self.max_turns, failure=reason)
        return Answer(self.number, "", episode)


class Workers:
    """Threads that work for episodes.

    Args:
        most: threads that can work at the same time.
    """

    def __init__(self, most: int):
        self.most = most
        self._number = 0  # of threads that do not hang
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[Live, Answer]] = queue.SimpleQueue()

    def submit(self, live: Live, work: Callable[[], Answer], number: int) -> None:
        """Have a thread do the work.

        Args:
            live: for which it is done.
            work: gives an answer; what it raises becomes one.
            number: of episodes that go on.
        """
        self._jobs.put((live, work))
        self.add_threads(number)

    def add_threads(self, number: int) -> None:
        """Have as many threads as can be of use to so many episodes."""
        with self._lock:
            missing = min(self.most, number) - self._number
            self._number += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._work, daemon=True, name="environment").start()

    def found(self, seconds: float) -> list[tuple[Live, Answer]]:
        """Return the answers that there are; with none, wait for one so long."""
        answers = []
        with contextlib.suppress(queue.Empty):
            if seconds and self._found.empty():
                answers.append(self._found.get(timeout=seconds))
            while True:
                answers.append(self._found.get_nowait())
        return [(live, answer) for live, answer in answers if not live.is_given_up]

    def give_up(self, live: Live) -> None:
        """Forget an episode. The thread that works for it closes its instance, if ever it can."""
        with self._lock:
            live.is_given_up, is_working = True, live.started < math.inf
            self._number -= is_working
        if not is_working:
            close_apart(live.environment)
        elif callable(give_up := getattr(live.environment, "give_up", None)):
            give_up()

    def close(self) -> None:
        """End every thread that does not hang."""
        for _ in range(self._number):
            self._jobs.put(None)
        self._number = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            live, work = job
            with self._lock:
                if live.is_given_up:
                    continue
                live.started = time.monotonic()
            try:
                answer = work()
            except Exception as error:
                answer = live.failed(described(error))
            with self._lock:
                live.started = math.inf
                if not live.is_given_up:
                    self._found.put((live, answer))
                    continue
            close(live.environment)
            return  # another thread has taken the place of this one


def close(environment: Any) -> None:
    """Close an instance; what it raises then harms nobody."""
    method = getattr(environment, "close", None)
    if callable(method):
        with contextlib.suppress(Exception):
            method()


def close_apart(environment: Any) -> threading.Thread:
    """Close an instance in a thread of its own, since that may hang."""
    thread = threading.Thread(target=close, args=(environment,), daemon=True)
    thread.start()
    return thread


def close_all(environments: Sequence[Any], seconds: float) -> None:
    """Close instances, and wait at most so long for all of them."""
    threads = [close_apart(each) for each in environments]
    last = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(last - time.monotonic(), 0.0))
