"""Lines of JSON over two pipes between ends without trust: bounded in time and in size."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

_CHUNK = 65_536


class ChannelError(Exception):
    """The other end ``died``, took too long (``timeout``), or sent no message (``garbled``)."""


class Channel:
    """One end: whole messages out and in, each by a deadline on ``time.monotonic``.

    Args:
        reader: file descriptor of the pipe to read; the channel owns both.
        writer: file descriptor of the pipe to write.
        limit: longest message read, in bytes.
    """

    def __init__(self, reader: int, writer: int, limit: int):
        self._reader, self._writer, self._limit, self._pending = reader, writer, limit, b""
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)

    def send(self, message: Any, deadline: float) -> None:
        """Write one message.

        Raises:
            ChannelError: the other end is gone or does not read.
        """
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            _wait(self._writer, select.POLLOUT, deadline)
            try:
                line = line[os.write(self._writer, line) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChannelError("died") from error

    def receive(self, deadline: float) -> Any:
        """Read one message.

        Raises:
            ChannelError: none came, or it was too long or no JSON.
        """
        while b"\n" not in self._pending:
            if len(self._pending) > self._limit:
                raise ChannelError("garbled")
            _wait(self._reader, select.POLLIN, deadline)
            try:
                chunk = os.read(self._reader, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                raise ChannelError("died")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ChannelError("garbled") from error

    def close(self) -> None:
        """Close both pipes; the other end reads the end of its input."""
        os.close(self._reader)
        os.close(self._writer)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise ChannelError("timeout")
