"""A vLLM server: the sampler of ``VLLMServerEngine``.

Completions come from ``/v1/completions``, with token ids in both directions. Weights are passed as
a safetensors file in a folder that trainer and server both see. The worker extension
(``vllm_worker.py``) loads them; it is called over ``/collective_rpc``. vLLM has that endpoint in
development mode only, and opens it to everybody who can reach the port. Of several trainer
processes the first passes the weights; each draws its own completions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
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
from rlif_lightning.rollout.vllm_http import REFUSED, Deadline, VLLMClient, VLLMError
from rlif_lightning.rollout.vllm_worker import shape_of
from rlif_lightning.whole_files import replaced

MAX_CONNECTIONS = 256  # requests that are open at a time; the server batches them
RESET_SECONDS = 10.0  # for the server to free the keys of requests that have just finished
MODE = "processed_logprobs"
FILE = "policy.safetensors"


class VLLMServer:
    """A vLLM server that has the policy's weights.

    Args:
        url: of the server, ``http://host:port``.
        weights_folder: the folder of the file that passes weights.
        timeout: seconds for an answer without tokens, and for loading weights.
        config: the policy's Hugging Face configuration.
        key_variable: the environment variable that holds the server's API key; None = it needs
            none.
        timeout_per_token: additional seconds for each token that a rollout's completions may have.

    Attributes:
        max_length: tokens of the longest prompt and completion together that the server takes.

    Raises:
        ValueError: the server was started without the extension or its endpoint, or serves another
            model; names the remedy.
        VLLMError: it cannot be reached.
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
        self.client = VLLMClient(url, timeout, key_variable, timeout_per_token)
        self.url, self.folder = self.client.url, Path(weights_folder).absolute()
        self.policy_id = ""
        facts = self._first_facts()
        self._check(facts, shape_of(config.get_text_config()))
        self.dtype: torch.dtype = getattr(torch, facts["dtype"])
        self.max_length = int(facts["max_model_len"])

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights, and discard the keys and values of the old ones (a collective).

        Raises:
            VLLMError: on every process: the file cannot be written, or the server refuses it or
                keeps its prefix cache.
        """
        self.policy_id = ""
        policy_id = all_rank_objects(uuid4().hex)[0]
        all_process_attempt(lambda: self._send(weights, policy_id))
        self.policy_id = policy_id

    def generate(
        self, prompt_ids: Sequence[list[int]], requests: Sequence[dict[str, Any]]
    ) -> list[list[Drawn]]:
        """Draw ``n`` completions for each prompt, in order.

        Raises:
            VLLMError: the server does not answer in time, refuses, or has other weights than it
                was given.
        """
        # All data ranks draw at the same time, and the same number of completions each.
        tokens = sum(each["n"] * each["max_tokens"] for each in requests)
        deadline = self.client.within(num_data_ranks() * tokens)
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            groups = list(pool.map(partial(self._complete, deadline), prompt_ids, requests))
        facts = self.client.call("policy_facts", {}, self.client.within())
        if {worker["policy_id"] for worker in facts} != {self.policy_id}:
            raise VLLMError(
                f"the vLLM server {self.url} no longer has the weights that it was given: it was"
                " restarted, or another run uses it; a run needs a server of its own"
            )
        return groups

    def _send(self, weights: Iterator[tuple[str, Tensor]], policy_id: str) -> None:
        if not is_first_process():
            deque(weights, maxlen=0)  # gathering a sharded weight is a collective
            return
        whole = {name: weight.to("cpu", self.dtype).contiguous() for name, weight in weights}
        path = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(path, self.folder / f".{policy_id}.unfinished") as unfinished:
                save_file(whole, unfinished, {"policy_id": policy_id})
        except (OSError, SafetensorError) as error:
            raise VLLMError(
                f"weights_folder={self.folder}: the weights cannot be written: {error}"
            ) from error
        hint = (
            f"; the file was {path}, which the server must see under the same name, and no other"
            " run may write"
        )
        arguments = {"path": str(path), "policy_id": policy_id}
        try:
            self.client.call("load_policy_file", arguments, self.client.within(), hint)
        finally:
            path.unlink(missing_ok=True)
        self._reset_prefix_cache()

    def _reset_prefix_cache(self) -> None:
        path, end = "/reset_prefix_cache", time.monotonic() + RESET_SECONDS
        while not self.client.ask(path, {}, self.client.within())["success"]:
            if time.monotonic() > end:
                raise VLLMError(
                    f"the vLLM server {self.url} keeps the keys and values of old weights ({path});"
                    " check that no other run uses it"
                )
            time.sleep(0.05)

    def _complete(self, deadline: Deadline, ids: list[int], request: dict[str, Any]) -> list[Drawn]:
        # Token ids for log-probs as well, since the server would decode every token otherwise.
        body = {
            "prompt": ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **request,
        }
        choices = self.client.ask("/v1/completions", body, deadline)["choices"]
        if len(choices) != request["n"]:
            raise VLLMError(
                f"the vLLM server {self.url} gave {len(choices)} of {request['n']} completions"
            )
        return [
            self._drawn(choice, request)
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def _drawn(self, choice: dict[str, Any], request: dict[str, Any]) -> Drawn:
        ids, reason = choice["token_ids"], choice["finish_reason"]
        if reason != "stop" and (reason != "length" or len(ids) != request["max_tokens"]):
            raise VLLMError(
                f"the vLLM server {self.url} ended a completion after {len(ids)} of"
                f" {request['max_tokens']} tokens ({reason}); start it with"
                " --generation-config vllm"
            )
        return Drawn(ids, choice["logprobs"]["token_logprobs"], reason == "stop")

    def _first_facts(self) -> dict[str, Any]:
        try:
            return self.client.call("policy_facts", {}, self.client.within())[0]
        except VLLMError as error:
            cause = error.__cause__
            if not isinstance(cause, HTTPError) or cause.code in REFUSED:
                raise
            missing = "our worker extension"
            if cause.code in (404, 405, 501):  # there is no such endpoint
                missing = "VLLM_SERVER_DEV_MODE=1 in its environment"
            raise ValueError(
                f"server={self.url} was started without {missing}; docs/vllm.md says how to start"
                f" it ({error})"
            ) from error

    def _check(self, facts: dict[str, Any], shape: dict[str, Any]) -> None:
        served = facts["shape"]
        for name in shape:
            if shape[name] != served.get(name, shape[name]):
                raise ValueError(
                    f"server={self.url} serves another model than the policy:"
                    f" {name}={served[name]} instead of {shape[name]}; start it with --model and"
                    " the policy's name or folder"
                )
        if facts["logprobs_mode"] != MODE:
            raise ValueError(
                f"server={self.url} returns {facts['logprobs_mode']}, which are not of the"
                f" distribution that it draws from; start it with --logprobs-mode {MODE}"
            )
