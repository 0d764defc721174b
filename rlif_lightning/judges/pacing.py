"""Limits of an endpoint: amounts a minute, pauses before another try, and a circuit breaker."""

from __future__ import annotations

import threading
import time
from email.utils import parsedate_to_datetime

RETRIES = 5  # of a question, after its first call
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds; each is twice the one before
LONGEST_WISH = 60.0  # seconds that a server's Retry-After may ask for
BREAK_AFTER = 5  # questions without a reply in a row


class Pace:
    """A limit on an amount a minute: each amount takes its share of the time before the next.

    Args:
        per_minute: the limit; None = none.
    """

    def __init__(self, per_minute: float | None):
        self.per_minute = per_minute
        self._lock, self._free = threading.Lock(), 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Return the seconds from ``now`` until this amount may be used.

        Example:
            >>> pace = Pace(60)
            >>> pace.reserve(2, now=100.0), pace.reserve(1, now=100.5), pace.reserve(1, now=110.0)
            (0.0, 1.5, 0.0)
        """
        if self.per_minute is None:
            return 0.0
        with self._lock:
            start = max(now, self._free)
            self._free = start + 60 * amount / self.per_minute
        return start - now

    def wait(self, amount: float) -> None:
        """Wait until this amount may be used."""
        time.sleep(self.reserve(amount, time.monotonic()))


class Breaker:
    """A circuit breaker: after some questions in a row without a reply, the others are not sent.

    Attributes:
        reason: why it is open; empty = it is closed.
    """

    def __init__(self) -> None:
        self._lock, self._in_a_row, self.reason = threading.Lock(), 0, ""
        self._is_held = False

    def record(self, failure: str) -> None:
        """Count a question; an empty failure closes the breaker."""
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if failure else 0
            if not failure:
                self.reason = self.reason if self._is_held else ""
            elif self._in_a_row >= BREAK_AFTER and not self.reason:
                self.reason = f"not sent after {self._in_a_row} failures in a row ({failure})"

    def open(self, reason: str, is_held: bool = False) -> None:
        """Send nothing more: every further question would fail likewise.

        Args:
            reason: why.
            is_held: whether it stays open though a call that is under way succeeds.
        """
        with self._lock:
            self.reason = self.reason or reason
            self._is_held |= is_held

    def close(self) -> None:
        """Send the next questions."""
        with self._lock:
            self.reason, self._is_held = "", False


def pause(failures: int, wish: float | None, uniform: float) -> float:
    """Return the seconds before another try: half to all of a time that doubles, or the wish.

    Args:
        failures: calls of this question that failed, >= 1.
        wish: of the server's Retry-After, in seconds; None = it has none.
        uniform: in [0, 1), the jitter: servers should not get all retries at one time.

    Example:
        >>> pause(1, None, 0.0), pause(3, None, 0.5), pause(9, None, 1.0), pause(1, 3.0, 0.5)
        (0.25, 1.5, 8.0, 3.0)
    """
    if wish is not None:
        return wish
    return min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) * (0.5 + uniform / 2)


def wished_pause(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most a minute; None = unreadable.

    Example:
        >>> wished_pause("7"), wished_pause("86400"), wished_pause("soon")
        (7.0, 60.0, None)
    """
    if header is None:
        return None
    try:
        seconds = (
            float(header)
            if header.strip().isdigit()
            else parsedate_to_datetime(header).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_WISH)
