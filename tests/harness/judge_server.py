"""A loopback server with OpenAI's ``/v1/chat/completions``, which answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = tuple[int, Any, dict[str, str]] | str | None


class JudgeServer(ThreadingHTTPServer):
    """Listens on a free port.

    Attributes:
        asked: (headers, body) of every request, in their order.
        answers: those of the next requests, then ``usual``. A text is a reply's content, a triple
            is status, JSON and headers; None closes the connection without a word, and HANG says
            nothing until the test ends.
        most: the largest number of requests at one time whose answers were being thought of. What
            is being sent does not count: its client may have it, and ask the next one.
    """

    HANG = "(hang)"
    request_queue_size = 256  # with five, a sixth caller would wait for a second
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.answers: list[Answer] = []
        self.usual: Callable[[dict[str, Any]], Answer] = lambda body: "Fine.\nScore: 4"
        self.released, self.lock = threading.Event(), threading.Lock()
        self.now = self.most = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((dict(self.headers), body))
            server.now += 1
            server.most = max(server.most, server.now)
            answer = server.answers.pop(0) if server.answers else ...
        try:
            answer = server.usual(body) if answer is ... else answer
        finally:
            with server.lock:
                server.now -= 1
        self._answer(server, answer)

    def _answer(self, server: Any, answer: Answer) -> None:
        self.close_connection = True
        if answer == server.HANG:
            server.released.wait(600)
        if answer is None or answer == server.HANG:
            return
        if isinstance(answer, str):
            answer = (200, message(answer), {})
        status, content, headers = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def message(content: Any) -> dict[str, Any]:
    """An answer with this content, as servers write it."""
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A running one, which no proxy of the environment stands before."""
    with pytest.MonkeyPatch.context() as patch, JudgeServer() as server:
        patch.setenv("no_proxy", "*")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
