"""JSON requests to a vLLM server over HTTP, with deadlines and errors that name the remedy."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, IncompleteRead
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, Request, build_opener
from weakref import WeakSet

EXCERPT = 500  # characters of a server's answer in an error
REFUSED = (401, 403)  # status codes of a missing or wrong key


class VLLMError(RuntimeError):
    """What a vLLM server did, with the remedy; the command line prints it without a traceback."""


@dataclass(frozen=True)
class Deadline:
    """The time by which an answer must have arrived.

    Attributes:
        at: on the monotonic clock.
        said: the length of the wait in words, with the settings that decide it.
    """

    at: float
    said: str

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.at - time.monotonic()


class Connections:
    """The open connections of a client, so that another thread can close them.

    Attributes:
        is_closing: whether every request fails.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known: WeakSet[HTTPConnection] = WeakSet()
        self.is_closing = False

    def tracked(self, kind: Callable[..., Any]) -> Callable[..., Any]:
        """Return a maker of connections that are known here."""

        def make(*args: Any, **kwargs: Any) -> Any:
            connection = kind(*args, **kwargs)
            with self.lock:
                self.known.add(connection)
            return connection

        return make

    def close(self) -> None:
        """Make whoever waits for an answer fail; vLLM ends a request whose client is gone."""
        with self.lock:
            sockets = [each.sock for each in self.known if each.sock is not None]
        for each in sockets:
            with suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RDWR)


class _Tracked:
    """A mixin of urllib's handlers that tells a :class:`Connections` of each connection."""

    connections: Connections

    def do_open(self, http_class: Any, req: Any, **arguments: Any) -> Any:
        parent: Any = super()
        return parent.do_open(self.connections.tracked(http_class), req, **arguments)


class _Plain(_Tracked, HTTPHandler):
    pass


class _Secure(_Tracked, HTTPSHandler):
    pass


class VLLMClient:
    """A client of one vLLM server.

    Args:
        url: of the server, ``http://host:port``.
        timeout: seconds for an answer without tokens.
        key_variable: the environment variable that holds the server's API key; None = it needs
            none.
        timeout_per_token: additional seconds for each token of an answer.

    Raises:
        ValueError: the variable holds no key.
    """

    def __init__(
        self, url: str, timeout: float, key_variable: str | None, timeout_per_token: float
    ):
        self.url, self.key_variable = url.rstrip("/"), key_variable
        self.timeout, self.timeout_per_token = timeout, timeout_per_token
        self.headers = {"Content-Type": "application/json", **credentials(key_variable)}
        self.connections, handlers = Connections(), [_Plain(), _Secure()]
        for handler in handlers:
            handler.connections = self.connections
        # A proxy in the environment is meant for other hosts.
        self.opener = build_opener(ProxyHandler({}), *handlers)

    @contextmanager
    def closing(self) -> Iterator[Callable[[], None]]:
        """Make every request of other threads fail; yield what closes the connections of now."""
        self.connections.is_closing = True
        try:
            yield self.connections.close
        finally:
            self.connections.is_closing = False

    def within(self, tokens: int = 0) -> Deadline:
        """Return the deadline, from now, of an answer of up to so many tokens."""
        seconds = self.timeout + self.timeout_per_token * tokens
        said = f"timeout={self.timeout:g} seconds"
        if tokens and self.timeout_per_token:
            said = (
                f"{seconds:g} seconds (timeout={self.timeout:g} +"
                f" {self.timeout_per_token:g} for each of {tokens} tokens)"
            )
        return Deadline(time.monotonic() + seconds, said)

    def call(
        self, method: str, kwargs: dict[str, str], deadline: Deadline, hint: str = ""
    ) -> list[Any]:
        """Call a method of the worker extension; return the answer of every worker."""
        body = {"method": method, "kwargs": kwargs}
        return self.ask("/collective_rpc", body, deadline, hint)["results"]

    def ask(self, path: str, body: dict[str, Any], deadline: Deadline, hint: str = "") -> Any:
        """Send a request, and return the answer.

        Args:
            path: of the endpoint.
            body: the request.
            deadline: for the whole answer.
            hint: is appended to an error that the server reports.

        Raises:
            VLLMError: the server cannot be reached, does not answer in time, refuses, or does
                not answer with JSON.
        """
        request = Request(self.url + path, json.dumps(body).encode(), self.headers)
        where = f"the vLLM server {self.url}"
        if self.connections.is_closing:
            raise VLLMError(f"{where} was not asked {path}: its answers are no longer needed")
        try:
            with self.opener.open(request, timeout=max(deadline.left, 0.01)) as answer:
                return json.loads(_read(answer, deadline))
        except HTTPError as error:
            answered = f"{where} answered {error.code} to {path}"
            if error.code in REFUSED:
                error.close()
                raise VLLMError(f"{answered}: {self._key_hint()}") from error
            raise VLLMError(f"{answered}: {_reported(error)}{hint}") from error
        except ValueError as error:
            raise VLLMError(
                f"{where} answered {path} with something else than JSON: {error}"
            ) from error
        except (OSError, HTTPException) as error:
            raise VLLMError(f"{where} {_fault(error, path, deadline)}") from error

    def _key_hint(self) -> str:
        if self.key_variable is None:
            return (
                "it wants an API key; name the environment variable that holds it in"
                " model.engine.key_variable"
            )
        return (
            f"it does not take the API key in the environment variable {self.key_variable}"
            " (model.engine.key_variable)"
        )


def _fault(error: Exception, path: str, deadline: Deadline) -> str:
    """Return what happened to a connection, and the remedy."""
    if isinstance(getattr(error, "reason", error), TimeoutError):
        return (
            f"did not answer {path} within {deadline.said}; look at its output, or, if it is slow,"
            " raise model.engine.timeout"
        )
    if isinstance(error, (IncompleteRead, ConnectionResetError)):
        return (
            f"went away while it answered {path}; find out why it ended, start it again, and"
            " resume the run (--ckpt_path=auto)"
        )
    return f"cannot be reached ({path}): {error}; check that it runs there, and its output"


def _read(answer: Any, deadline: Deadline) -> bytes:
    """Read the whole body before the deadline.

    The socket's time-out bounds the wait for a few bytes only.
    """
    parts, length = [], answer.headers["Content-Length"]
    while part := answer.read1(2**16):
        parts.append(part)
        if deadline.left < 0:
            raise TimeoutError
    body = b"".join(parts)
    if length is not None and len(body) < int(length):
        raise IncompleteRead(body, int(length) - len(body))
    return body


def credentials(key_variable: str | None) -> dict[str, str]:
    """Return the header that carries an API key, which no message holds.

    Args:
        key_variable: the environment variable that holds it; None = no key, no header.

    Raises:
        ValueError: the variable holds no key.
    """
    if key_variable is None:
        return {}
    key = os.environ.get(key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        fault = "holds something else than an API key, which is printable ASCII"
        raise ValueError(
            f"key_variable={key_variable}: this environment variable"
            f" {fault if key else 'is not set'}"
        )
    return {"Authorization": f"Bearer {key}"}


def _reported(error: HTTPError) -> str:
    """Return the error that the server reports: vLLM's message, or the start of another page."""
    try:
        with error:
            text = error.read().decode(errors="replace")
    except (OSError, HTTPException):
        return error.reason
    try:
        return str(json.loads(text)["error"]["message"])[:EXCERPT]
    except (ValueError, KeyError, TypeError):
        return text[:EXCERPT]
