"""A vLLM server reached by HTTP: what ``VLLMEngine`` with a ``url`` talks to.

Completions come from vLLM's OpenAI-compatible ``/v1/completions``, token ids in and out. Weights go through a
safetensors file in a folder that trainer and server both see, and are loaded by our worker extension, which is called
over the development endpoint ``/collective_rpc``. So the server must be started with ``VLLM_SERVER_DEV_MODE=1`` (which
opens that endpoint to whoever reaches the port), ``--worker-extension-cls`` and ``--logprobs-mode processed_logprobs``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from safetensors.torch import save_file
from torch import Tensor

from rlif_lightning.rollout.rescoring import Drawn

MAX_CONNECTIONS = 64  # prompts under way at a time; the server batches them
EXCERPT = 300  # characters of a server's answer in an error


class VLLMServer:
    """A client of one server.

    Args:
        url: where it listens, ``http://host:port``.
        weights_folder: where weights are handed over.
        timeout: seconds to wait for an answer.

    Raises:
        RuntimeError: the server cannot be reached or refuses.
    """

    def __init__(self, url: str, weights_folder: str, timeout: float):
        self.url, self.folder, self.timeout = url.rstrip("/"), Path(weights_folder).absolute(), timeout
        self.opener = build_opener(ProxyHandler({}))  # a proxy of the environment is for other hosts
        model = self._ask("/v1/models")["data"][0]
        self.model, self.max_length = model["id"], int(model["max_model_len"])
        self.number = 0

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights, and forget the keys and values that the old ones gave.

        Raises:
            RuntimeError: the server refuses, or kept its prefix cache.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number += 1
        # A new name each time: a server may still map the file that it read last.
        path = self.folder / f"policy-{self.number}.safetensors"
        try:
            save_file({name: weight.cpu().contiguous() for name, weight in weights}, path)
            self._ask("/collective_rpc", {"method": "load_policy_file", "kwargs": {"path": str(path)}})
            if not self._ask("/reset_prefix_cache", {})["success"]:
                raise RuntimeError(f"the vLLM server {self.url} did not reset its prefix cache; is it used by others?")
        finally:
            path.unlink(missing_ok=True)

    def generate(self, prompt_ids: Sequence[list[int]], requests: Sequence[dict[str, Any]]) -> list[list[Drawn]]:
        """``n`` completions for each prompt, in order."""
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            return list(pool.map(self._complete, prompt_ids, requests))

    def _complete(self, ids: list[int], request: dict[str, Any]) -> list[Drawn]:
        body = {"model": self.model, "prompt": ids, "return_token_ids": True, **request}
        choices = sorted(self._ask("/v1/completions", body)["choices"], key=lambda choice: choice["index"])
        return [
            Drawn(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")
            for choice in choices
        ]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=self.timeout) as answer:
                text = answer.read()
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:EXCERPT]
            hint = "; start it with VLLM_SERVER_DEV_MODE=1 (docs/vllm.md)" if error.code == 404 else ""
            raise RuntimeError(f"the vLLM server {self.url} answered {error.code} to {path}{hint}: {said}") from error
        except (URLError, OSError) as error:
            raise RuntimeError(f"the vLLM server {self.url} cannot be reached ({path}): {error}") from error
        return json.loads(text) if text else {}
