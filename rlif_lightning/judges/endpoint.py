"""``EndpointJudge``: a judge behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx2

from rlif_lightning.judges.base import (
    GREEDY,
    ModelJudge,
    Reply,
    Request,
    RunModels,
    question_number,
)
from rlif_lightning.judges.chat_client import ChatClient
from rlif_lightning.judges.pacing import Breaker, Pace
from rlif_lightning.judges.reply_cache import ReplyCache, question_key
from rlif_lightning.processes.ranks import num_data_ranks
from rlif_lightning.rollout.vllm_http import credentials
from rlif_lightning.sampling import Sampling

CHARACTERS = 3  # of a question for each of its tokens, for the limit of tokens a minute


class EndpointJudge(ModelJudge):
    """A judge that answers ``POST {url}/chat/completions``, as OpenAI's, vLLM's and others do.

    Limits are of the whole run: each data rank keeps its share of them.

    Args:
        url: of the API, such as ``https://host/v1``.
        model: the judge's name there.
        key_variable: the environment variable that holds the API key; null = it needs none.
        structured: ask for JSON by a schema. A server that refuses is asked for any JSON, then for
            text, and that is remembered.
        max_concurrent: calls at a time.
        requests_per_minute: calls a minute; null = no limit.
        tokens_per_minute: tokens a minute, of questions and of replies at their limit, estimated
            before a call; null = no limit.
        timeout: seconds for one call.
        cache: sqlite file of replies; null = replies are not kept.
        cache_sampled: keep replies at a temperature above 0 too: an equal question then has the
            same reply for ever, and the judge's noise is frozen.
        prices: of a million tokens of questions, and of replies, in any currency: costs are logged
            and foreseen by ``preflight`` then; null = neither.
        sampling: how its reply is drawn; an API takes temperature, max_new_tokens, top_p and stop.
        max_failed: as for :class:`Judge`.

    Raises:
        ValueError: a URL, a number or a combination that cannot be used.
    """

    needs_consent: ClassVar[dict[str, str]] = {
        "url": "is where questions, and the key, would be sent"
    }

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = None,
        structured: bool = False,
        max_concurrent: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 60.0,
        cache: str | None = None,
        cache_sampled: bool = False,
        prices: tuple[float, float] | None = None,
        sampling: Sampling = GREEDY,
        max_failed: float = 0.1,
    ):
        super().__init__(sampling, max_failed)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"judge.url={url!r} must be of the form https://host/v1")
        self.prices = _checked_prices(prices)
        numbers = {
            "max_concurrent": max_concurrent,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "timeout": timeout,
        }
        for name, number in numbers.items():
            if number is not None and not number > 0:
                raise ValueError(f"judge.{name}={number} must be positive")
        _check_sampling(sampling)
        _check_cache(cache, cache_sampled, sampling)
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.structured, self.max_concurrent, self.timeout = structured, max_concurrent, timeout
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.answers_elsewhere = True
        self.repeats_itself = sampling.temperature == 0 or cache_sampled
        self.seed, self._path = 0, cache
        self._client, self._breaker, self._connecting = None, Breaker(), Lock()
        self._cache: ReplyCache | None = None

    def bind(self, models: RunModels) -> None:
        self.seed = models.seed

    def check(self) -> None:
        """Refuse a missing key, before anything is sampled."""
        credentials(self.key_variable)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        try:
            client = self._connected()
        except ValueError as error:  # no key, or no cache
            return [Reply(None, str(error), calls=0) for _ in requests]
        waiting = list(requests)
        replies = []
        if client.breaker.reason and waiting:  # one question tries whether the server is back
            client.breaker.close()
            replies.append(self._ask(client, waiting.pop(0)))
            if replies[0].text is None:
                client.breaker.open(replies[0].failure)
        with ThreadPoolExecutor(max(1, self.max_concurrent // num_data_ranks())) as threads:
            try:
                replies += threads.map(lambda request: self._ask(client, request), waiting)
            except BaseException:
                self.interrupt()  # calls that wait end at once
                raise
        return replies

    def interrupt(self) -> None:
        self._breaker.open("the run was interrupted", is_held=True)

    def _connected(self) -> ChatClient:
        """Return the client, made at the first call: only then is the number of ranks known."""
        with self._connecting:  # heads that share a judge ask it at the same time
            if self._client is None:
                ranks = num_data_ranks()
                requests, tokens = (
                    Pace(None if limit is None else limit / ranks)
                    for limit in (self.requests_per_minute, self.tokens_per_minute)
                )
                http = httpx2.Client(headers=credentials(self.key_variable), follow_redirects=False)
                self._cache = None if self._path is None else ReplyCache(self._path)
                own = (self.timeout, requests, tokens, self._breaker)
                self._client = ChatClient(self.url, http, *own)
            return self._client

    def _ask(self, client: ChatClient, request: Request) -> Reply:
        body, schema = self._body(request), request.schema if self.structured else None
        key = question_key(self.url, {**body, "schema": schema}) if self._cache else ""
        known = self._cache.get(key) if self._cache else None
        if known is not None:
            return Reply(known[0], "", 0)
        expected = len(request.text) // CHARACTERS + self.sampling.max_new_tokens
        reply = client.ask(body, schema, expected)
        if self._cache and reply.text is not None:
            self._cache.put(key, (reply.text, reply.prompt_tokens, reply.completion_tokens))
        if self.prices is None:
            return reply
        tokens = (reply.prompt_tokens, reply.completion_tokens)
        cost = sum(map(operator.mul, self.prices, tokens)) / 1e6
        return replace(reply, cost=cost)

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = self.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": request.text}],
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.temperature:
            body["seed"] = (self.seed + question_number(request.text)) % 2**31
        return body


def _checked_prices(prices: tuple[float, float] | None) -> tuple[float, float] | None:
    if prices is not None and not min(prices) >= 0:
        raise ValueError(f"judge.prices={prices} must not be negative")
    return prices


def _check_sampling(sampling: Sampling) -> None:
    if sampling.top_k or sampling.min_new_tokens or sampling.train_stop:
        raise ValueError(
            f"judge.sampling.top_k={sampling.top_k}, min_new_tokens={sampling.min_new_tokens},"
            f" train_stop={sampling.train_stop}: an OpenAI-compatible API has none of these; leave"
            " them at their defaults"
        )


def _check_cache(cache: str | None, cache_sampled: bool, sampling: Sampling) -> None:
    if cache is None and cache_sampled:
        raise ValueError("judge.cache_sampled=true needs a file in judge.cache")
    if cache is not None and bool(sampling.temperature) != cache_sampled:
        raise ValueError(
            f"judge.cache={cache!r} with judge.sampling.temperature={sampling.temperature:g} and"
            f" cache_sampled={cache_sampled}: set cache_sampled=true at a temperature above 0 (it"
            " freezes the judge's noise), and only there"
        )
