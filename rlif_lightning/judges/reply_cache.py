"""Replies on disk, by question: a run that is resumed pays for no call twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

_TABLE = (
    "create table if not exists replies (question text primary key, reply text not null,"
    " prompt_tokens integer not null, completion_tokens integer not null)"
)
_GET = "select reply, prompt_tokens, completion_tokens from replies where question = ?"
_PUT = "insert or replace into replies values (?, ?, ?, ?)"
PATIENCE = 30.0  # seconds for another process's write


class ReplyCache:
    """An sqlite file of replies, which several threads and processes may use at once.

    Args:
        path: of the file; it and its folder are made.

    Raises:
        ValueError: the file cannot be used.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"judge.cache={str(path)!r} cannot be used ({error}); name another file, or remove"
                " this one"
            ) from error

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=PATIENCE)

    def get(self, question: str) -> tuple[str, int, int] | None:
        """Return the reply, and the tokens of question and reply; None = it is not known."""
        try:
            with closing(self._open()) as file:
                return file.execute(_GET, (question,)).fetchone()
        except sqlite3.Error as error:
            return self._warn(error)

    def put(self, question: str, reply: tuple[str, int, int]) -> None:
        """Keep a reply. A disk that takes none is a warning: the run has its reply."""
        try:
            with closing(self._open()) as file, file:
                file.execute(_PUT, (question, *reply))
        except sqlite3.Error as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        warnings.warn(
            f"judge.cache={str(self.path)!r}: {error}; the run goes on without it", stacklevel=3
        )


def question_key(url: str, body: dict[str, Any]) -> str:
    """Return the name of a question: a hash of everything that decides its reply."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
