"""The part of the Hugging Face hub's API by which a client makes a repository and commits to it.

The client is huggingface_hub's own. The server keeps what arrives, as a repository would: small
files come inside a commit, large ones are put into the store that the LFS answer names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_of_a_test"


class LocalHub(ThreadingHTTPServer):
    """A hub with one user, whose token is ``TOKEN``.

    Attributes:
        requests: method and path of each, in their order.
        made: what repositories were asked for.
        files: of the repository, after all commits.
        commits: their messages.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.requests: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.is_full = False  # the store takes nothing
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any = None, status: int = 200) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        content = self._body()
        if self.server.is_full:
            return self._answer({"error": "quota exceeded"}, 403)
        self.server.stored[hashlib.sha256(content).hexdigest()] = content
        self._answer()

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        path = self.path.partition("?")[0]
        hub.requests.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            hub.made.append(json.loads(body))
            return self._answer({"url": f"{hub.url}/me/tiny"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/models/me/tiny/preupload/main":
            return self._answer({"files": [_mode(each) for each in json.loads(body)["files"]]})
        if path == "/me/tiny.git/info/lfs/objects/batch":
            return self._answer({"transfer": "basic", "objects": self._places(json.loads(body))})
        if path == "/api/models/me/tiny/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
            oid = f"{len(hub.commits):040x}"
            return self._answer({"commitUrl": f"{hub.url}/me/tiny/commit/{oid}", "commitOid": oid})
        self._answer({"error": f"no such path: {path}"}, 404)

    def _places(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/store/{each['oid']}"}}}
            for each in asked["objects"]
        ]

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for value in (line["value"] for line in lines if line["key"] == "file"):
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            self.server.files[value["path"]] = self.server.stored[value["oid"]]
        self.server.commits += [line["value"]["summary"] for line in lines[:1]]


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def local_hub(token: str = TOKEN) -> Iterator[LocalHub]:
    """Send the client of this process to a local hub, logged in with this token.

    Large files go by LFS's basic transfer: Xet's store has a protocol of its own.
    """
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", token)
        patch.setenv("no_proxy", "*")
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.server_close()
            thread.join()
