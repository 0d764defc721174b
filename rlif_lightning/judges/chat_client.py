"""One question to an OpenAI-compatible server, with every retry in this one layer.

Calls that failed for a passing reason (429, 5xx, the connection, the time-out) are made again. What
no repetition changes (a wrong key, path or model) is not, and no other question is sent after it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from rlif_lightning.judges.base import Reply, without_thinking
from rlif_lightning.judges.pacing import RETRIES, Breaker, Pace, pause, wished_pause

EXCERPT = 300  # characters of a server's answer in a failure
HOPELESS = (401, 403, 404, 405)  # every question would fail likewise
MISUNDERSTOOD = (400, 422)  # this request, or the form of reply that it asks for
SLOW_RETRIES = MALFORMED_RETRIES = 1
# From the strictest form of a reply that a server may know to none.
FORMS = ("json_schema", "json_object", "text")


class CallFault(Exception):
    """A call without a reply.

    Attributes:
        retries: how often the question may be asked again after such a call.
        is_hopeless: whether every question would fail likewise.
        is_misunderstood: whether another form of reply may help.
        wish: seconds that the server asks to wait; None = it does not say.
    """

    def __init__(self, reason: str, retries: int = 0, wish: float | None = None, status: int = 0):
        super().__init__(reason)
        self.retries, self.wish = retries, wish
        self.is_hopeless, self.is_misunderstood = status in HOPELESS, status in MISUNDERSTOOD


@dataclass
class ChatClient:
    """A client of one server.

    Attributes:
        url: of the API, up to ``/v1``.
        http: with the key among its headers.
        timeout: seconds for one call.
        requests, tokens: limits a minute.
        form: index into ``FORMS``: the strictest form that the server has not refused.
    """

    url: str
    http: httpx2.Client
    timeout: float
    requests: Pace
    tokens: Pace
    breaker: Breaker
    form: int = 0

    def ask(self, body: dict[str, Any], schema: Mapping[str, Any] | None, tokens: int) -> Reply:
        """Ask until there is a reply or no hope of one.

        Args:
            body: the request, without the form of the reply.
            schema: what the reply's JSON must look like; None = a text.
            tokens: about as many as question and reply will have.
        """
        form = len(FORMS) - 1 if schema is None else self.form
        failures, calls = 0, 0
        while not self.breaker.reason:
            self.requests.wait(1)
            self.tokens.wait(tokens)
            calls += 1
            try:
                text, asked, answered = self._call({**body, **_form(form, schema)})
            except CallFault as fault:
                if fault.is_misunderstood and form < len(FORMS) - 1:
                    form += 1
                    continue
                failures += 1
                if fault.is_hopeless:
                    self.breaker.open(str(fault))
                if failures > fault.retries:
                    self.breaker.record("" if fault.is_misunderstood else str(fault))
                    return Reply(None, str(fault), calls)
                time.sleep(pause(failures, fault.wish, random.random()))
                continue
            if schema is not None:
                self.form = max(self.form, form)  # remembered: the others begin with it
            self.breaker.record("")
            return Reply(text, "", calls, asked, answered)
        return Reply(None, self.breaker.reason, calls)

    def _call(self, body: dict[str, Any]) -> tuple[str, int, int]:
        """Make one call; return the reply without its thinking, and the tokens."""
        status, headers, content = self._post(body)
        if status == 200:
            return _read(content)
        said = f"{self.url} answered {status}: {_reported(content)}"
        if status in HOPELESS:
            said += "; check judge.url, judge.model and the key in judge.key_variable"
        passing = status in (408, 409, 425, 429) or status >= 500
        wish = wished_pause(headers.get("retry-after"))
        raise CallFault(said, RETRIES if passing else 0, wish, status)

    def _post(self, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request; the time-out bounds the whole answer, not the wait for a few bytes."""
        end, parts = time.monotonic() + self.timeout, []
        url = f"{self.url}/chat/completions"
        try:
            with self.http.stream("POST", url, json=body, timeout=self.timeout) as answer:
                for part in answer.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > end:
                        raise httpx2.ReadTimeout("the answer came too slowly")
                return answer.status_code, answer.headers, b"".join(parts)
        except httpx2.TimeoutException as error:
            slow = f"{self.url} did not answer within judge.timeout={self.timeout:g} seconds"
            raise CallFault(slow, SLOW_RETRIES) from error
        except httpx2.HTTPError as error:
            raise CallFault(f"{self.url}: {type(error).__name__}: {error}", RETRIES) from error


def _form(form: int, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the part of a request that asks for a form of reply."""
    if FORMS[form] == "text":
        return {}
    wanted: dict[str, Any] = {"type": FORMS[form]}
    if FORMS[form] == "json_schema":
        wanted["json_schema"] = {"name": "judgement", "schema": schema, "strict": True}
    return {"response_format": wanted}


def _read(content: bytes) -> tuple[str, int, int]:
    """Return the text of an answer, and its token counts."""
    try:
        answer = json.loads(content)
        message = answer["choices"][0]["message"]
        text = message["content"]
        if text is None:  # its thinking came apart, and nothing followed
            text = ""
        if not isinstance(text, str):
            raise TypeError(f"content of type {type(text).__name__}")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        said = f"an answer without a message ({type(error).__name__}: {error})"
        raise CallFault(said, MALFORMED_RETRIES) from error
    usage = answer.get("usage")
    asked, answered = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return without_thinking(text), asked, answered


def _count(usage: Any, name: str) -> int:
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def _reported(content: bytes) -> str:
    """Return the error that a server reports: its message, or the start of another page."""
    text = content.decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])[:EXCERPT]
    except (ValueError, KeyError, TypeError, RecursionError):
        return " ".join(text.split())[:EXCERPT]
