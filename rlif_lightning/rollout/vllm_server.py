"""A vLLM server reached by HTTP: what ``VLLMServerEngine`` talks to.

Completions come from ``/v1/completions``, token ids in and out. Weights go through a safetensors
file in a folder that trainer and server both see, and are loaded by our worker extension, which is
called over ``/collective_rpc``. vLLM has that endpoint in development mode only, and opens it to
whoever reaches the port. Of several trainer processes the first hands weights over; each draws its
own completions.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlif_lightning.processes.collectives import (
    all_process_attempt,
    all_rank_objects,
    is_first_process,
)
from rlif_lightning.processes.ranks import num_data_ranks
from rlif_lightning.rollout.external_samples import Drawn
from rlif_lightning.rollout.vllm_worker import shape_of
from rlif_lightning.whole_files import replaced

MAX_CONNECTIONS = 256  # prompts under way at a time; the server batches them
EXCERPT = 500  # characters of a server's answer in an error
RESET_SECONDS = 10.0  # for what the server finished a moment ago to let go of its keys
REFUSED = (401, 403)  # for lack of a right key
MODE = "processed_logprobs"
FILE = "policy.safetensors"


@dataclass(frozen=True)
class Deadline:
    """Until when an answer is waited for.

    Attributes:
        at: on the monotonic clock.
        said: how long that is, in words, by the settings that decide it.
    """

    at: float
    said: str

    @property
    def left(self) -> float:
        """Seconds."""
        return self.at - time.monotonic()


class VLLMServer:
    """A client of one server.

    Args:
        url: where it listens, ``http://host:port``.
        weights_folder: where weights are handed over.
        timeout: seconds for an answer of no tokens, and for loading weights.
        config: the policy's Hugging Face configuration.
        key_variable: the environment variable that holds the server's API key; null = it needs
            none.
        timeout_per_token: seconds more for each token that a rollout's completions may have.

    Attributes:
        max_length: longest prompt and completion together that the server takes, in tokens.

    Raises:
        ValueError: the server was not started for us, serves another model, or wants another key;
            names the remedy.
        RuntimeError: it cannot be reached.
    """

    def __init__(
        self,
        url: str,
        weights_folder: str,
        timeout: float,
        config: Any,
        key_variable: str | None = None,
        timeout_per_token: float = 0.0,
    ):
        self.key_variable = key_variable
        self.headers = {"Content-Type": "application/json", **_credentials(key_variable)}
        self.url, self.folder = url.rstrip("/"), Path(weights_folder).absolute()
        self.timeout, self.timeout_per_token = timeout, timeout_per_token
        self.opener = build_opener(
            ProxyHandler({})
        )  # a proxy of the environment is for other hosts
        self.policy_id = ""
        facts = self._first_facts()
        self._check(facts, shape_of(config.get_text_config()))
        self.dtype: torch.dtype = getattr(torch, facts["dtype"])
        self.max_length = int(facts["max_model_len"])

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights, and forget the keys and values that the old ones gave (a collective).

        Raises:
            RuntimeError: on every rank: the file cannot be written, or the server refuses it or
                keeps its prefix cache.
        """
        self.policy_id = ""
        policy_id = all_rank_objects(uuid4().hex)[0]
        all_process_attempt(lambda: self._hand_over(weights, policy_id))
        self.policy_id = policy_id

    def generate(
        self, prompt_ids: Sequence[list[int]], requests: Sequence[dict[str, Any]]
    ) -> list[list[Drawn]]:
        """``n`` completions for each prompt, in order.

        Raises:
            RuntimeError: the server does not answer in time, refuses, or has other weights than it
                was given.
        """
        # All processes draw at the same time, as many completions each.
        deadline = self._within(
            num_data_ranks() * sum(each["n"] * each["max_tokens"] for each in requests)
        )
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            groups = list(pool.map(partial(self._complete, deadline), prompt_ids, requests))
        held = {worker["policy_id"] for worker in self._call("policy_facts", {}, self._within())}
        if held != {self.policy_id}:
            raise RuntimeError(
                f"the vLLM server {self.url} no longer has the weights that it was given: it was"
                " started anew, or"
                " another run uses it; a run needs a server of its own"
            )
        return groups

    def _within(self, tokens: int = 0) -> Deadline:
        """The time that an answer of up to so many tokens may take."""
        seconds, said = (
            self.timeout + self.timeout_per_token * tokens,
            f"timeout={self.timeout:g} seconds",
        )
        if tokens and self.timeout_per_token:
            said = (
                f"{seconds:g} seconds (timeout={self.timeout:g} +"
                f" timeout_per_token={self.timeout_per_token:g} x"
            )
            said += f" {tokens} tokens)"
        return Deadline(time.monotonic() + seconds, said)

    def _hand_over(self, weights: Iterator[tuple[str, Tensor]], policy_id: str) -> None:
        if not is_first_process():
            deque(weights, maxlen=0)  # of a divided policy each is gathered from all ranks
            return
        whole = {name: weight.to("cpu", self.dtype).contiguous() for name, weight in weights}
        path = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(path, self.folder / f".{policy_id}.unfinished") as unfinished:
                save_file(whole, unfinished, {"policy_id": policy_id})
        except (OSError, SafetensorError) as error:
            raise RuntimeError(
                f"weights_folder={self.folder}: the weights cannot be written: {error}"
            ) from error
        hint = (
            f"; the file was {path}, which the server must see under the same name, and no"
            " other"
            " run write"
        )
        arguments = {"path": str(path), "policy_id": policy_id}
        try:
            self._call("load_policy_file", arguments, self._within(), hint)
        finally:
            path.unlink(missing_ok=True)
        self._forget_keys()

    def _forget_keys(self) -> None:
        end = time.monotonic() + RESET_SECONDS
        while not self._ask("/reset_prefix_cache", {}, self._within())[
            "success"
        ]:  # each answer has the usual time
            if time.monotonic() > end:
                raise RuntimeError(
                    f"the vLLM server {self.url} keeps the keys and values of old weights"
                    " (/reset_prefix_cache): does"
                    " another run use it?"
                )
            time.sleep(0.05)

    def _complete(self, deadline: Deadline, ids: list[int], request: dict[str, Any]) -> list[Drawn]:
        # Token ids instead of texts for log-probs too, or the server would decode every token.
        body = {
            "prompt": ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **request,
        }
        choices = self._ask("/v1/completions", body, deadline)["choices"]
        if len(choices) != request["n"]:
            raise RuntimeError(
                f"the vLLM server {self.url} gave {len(choices)} of {request['n']} completions"
            )
        return [
            self._drawn(choice, request)
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def _drawn(self, choice: dict[str, Any], request: dict[str, Any]) -> Drawn:
        ids, reason = choice["token_ids"], choice["finish_reason"]
        if reason != "stop" and (reason != "length" or len(ids) != request["max_tokens"]):
            raise RuntimeError(
                f"the vLLM server {self.url} ended a completion after {len(ids)} of"
                f" {request['max_tokens']} tokens"
                f" ({reason}); start it with --generation-config vllm"
            )
        return Drawn(ids, choice["logprobs"]["token_logprobs"], reason == "stop")

    def _first_facts(self) -> dict[str, Any]:
        try:
            return self._call("policy_facts", {}, self._within())[0]
        except RuntimeError as error:
            cause = error.__cause__
            if not isinstance(cause, HTTPError) or cause.code in REFUSED:
                raise
            no_endpoint = cause.code in (404, 405, 501)
            lacking = (
                "VLLM_SERVER_DEV_MODE=1 in its environment"
                if no_endpoint
                else "our worker extension"
            )
            raise ValueError(
                f"server={self.url} was started without {lacking}; how to start one is in"
                f" docs/vllm.md ({error})"
            ) from error

    def _check(self, facts: dict[str, Any], shape: dict[str, Any]) -> None:
        served = facts["shape"]
        for name in shape:
            if shape[name] != served.get(name, shape[name]):
                raise ValueError(
                    f"server={self.url} serves another model than the policy:"
                    f" {name}={served[name]} instead of"
                    f" {shape[name]}; start it with --model and the policy's name or folder"
                )
        if facts["logprobs_mode"] != MODE:
            raise ValueError(
                f"server={self.url} gives {facts['logprobs_mode']}, which are not of what it draws"
                " from; start it with"
                f" --logprobs-mode {MODE}"
            )

    def _call(
        self, method: str, kwargs: dict[str, str], deadline: Deadline, hint: str = ""
    ) -> list[Any]:
        """A method of the worker extension: the answer of every worker."""
        return self._ask("/collective_rpc", {"method": method, "kwargs": kwargs}, deadline, hint)[
            "results"
        ]

    def _ask(self, path: str, body: dict[str, Any], deadline: Deadline, hint: str = "") -> Any:
        request = Request(self.url + path, json.dumps(body).encode(), self.headers)
        where = f"the vLLM server {self.url}"
        try:
            with self.opener.open(request, timeout=max(deadline.left, 0.01)) as answer:
                return json.loads(_read(answer, deadline))
        except HTTPError as error:
            if error.code in REFUSED:
                error.close()
                raise RuntimeError(
                    f"{where} answered {error.code} to {path}: {self._key_hint()}"
                ) from error
            raise RuntimeError(
                f"{where} answered {error.code} to {path}: {_said(error)}{hint}"
            ) from error
        except ValueError as error:
            raise RuntimeError(
                f"{where} answered {path} with something else than JSON: {error}"
            ) from error
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise RuntimeError(
                    f"{where} did not answer {path} within {deadline.said}; look at what it"
                    " prints, or raise"
                    " model.engine.timeout"
                ) from error
            if isinstance(error, (IncompleteRead, ConnectionResetError)):
                raise RuntimeError(
                    f"{where} went away while it answered {path}; see why it ended, start it"
                    " again, and resume the run"
                    " (--ckpt_path=auto)"
                ) from error
            raise RuntimeError(
                f"{where} cannot be reached ({path}): {error}; is it running there, and what did"
                " it print?"
            ) from error

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


def _read(answer: Any, deadline: Deadline) -> bytes:
    """The whole body.

    A time-out of the socket bounds the wait for a few bytes only; the deadline bounds all of it.
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


def _credentials(key_variable: str | None) -> dict[str, str]:
    """The header that carries the key. A message never holds the key itself."""
    if key_variable is None:
        return {}
    key = os.environ.get(key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        said = (
            "is not set"
            if not key
            else "holds something else than an API key, which is printable ASCII"
        )
        raise ValueError(f"key_variable={key_variable}: this environment variable {said}")
    return {"Authorization": f"Bearer {key}"}


def _said(error: HTTPError) -> str:
    """What the server says is wrong: vLLM's message, or the beginning of another server's page."""
    try:
        with error:
            text = error.read().decode(errors="replace")
    except (OSError, HTTPException):
        return error.reason
    try:
        return str(json.loads(text)["error"]["message"])[:EXCERPT]
    except (ValueError, KeyError, TypeError):
        return text[:EXCERPT]
