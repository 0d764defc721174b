"""A server with those of vLLM's endpoints that we use: the native engine samples, our real
extension loads weights.

For what must be tested where vLLM is not installed. tests/test_vllm_server.py runs the same tests
against vLLM itself where it is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.vllm_weights import fingerprint
from rlif_lightning.rollout.vllm_worker import PolicyWorker
from rlif_lightning.sampling import Sampling

HANG_SECONDS = 600.0  # nothing takes so long, however busy the machine is


class Worker(PolicyWorker):
    """What vLLM's worker has that the extension uses, for a Hugging Face model."""

    def __init__(self, policy: PolicyModel):
        self.policy = policy
        config = SimpleNamespace(
            hf_text_config=policy.causal_lm.config,
            dtype=torch.float32,
            max_model_len=128,
            logprobs_mode="processed_logprobs",
        )
        self.model_runner = SimpleNamespace(model_config=config, get_model=lambda: policy.causal_lm)

    def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        missing, unexpected = self.policy.causal_lm.load_state_dict(
            dict(weights_iterator), strict=False
        )
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}


class StandIn(ThreadingHTTPServer):
    """Listens on a free port.

    Attributes:
        asked: (path, body) of every request.
        answers: path -> (status, body) of the next requests to it; the real answer when none is
            left.
        key: what must come as ``Authorization: Bearer``, as vLLM asks under /v1 with ``--api-key``;
            None = nothing.
        hang: paths that are not answered until ``released`` is set, or ``HANG_SECONDS`` are over.
        dies: path -> share of an answer's bytes after which the connection is closed, as when the
            process is killed.
        pause: seconds between every two bytes of an answer's body.
        drawn: (seed of the request, id of the weights, their float64 sum) of every request that
            samples.
    """

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, worker: Worker):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.worker, self.lock = worker, threading.Lock()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.hang: set[str] = set()
        self.dies: dict[str, float] = {}
        self.pause = 0.0
        self.key: str | None = None
        self.drawn: list[tuple[int, str, float]] = []
        self.released = threading.Event()
        self.over = False  # nothing is drawn from now on

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """As vLLM's server: what the engine's process raises is its message under status 500."""
        self.asked.append((path, body))
        if path in self.hang:
            self.released.wait(HANG_SECONDS)
        with self.lock:
            if self.answers.get(path):
                return self.answers[path].pop(0)
            if self.over:
                return 503, {"error": {"message": "the server ends"}}
            if path == "/collective_rpc":
                return self._call(body["method"], body["kwargs"])
            if path == "/reset_prefix_cache":
                return 200, {"success": True}
            return (
                (200, self._complete(body))
                if path == "/v1/completions"
                else (404, {"detail": "Not Found"})
            )

    def _call(self, method: str, kwargs: dict[str, str]) -> tuple[int, Any]:
        try:
            return 200, {"results": [getattr(self.worker, method)(**kwargs)]}
        except Exception as error:
            return 500, {"error": {"message": f"Call to collective_rpc method failed: {error}"}}

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        policy = self.worker.policy
        if body["temperature"]:
            total = float(fingerprint(policy).sum())
            self.drawn.append((body["seed"], self.worker.policy_id, total))
        policy.eos_ids = body["stop_token_ids"]
        policy.num_tokens = min(map(int, body["logit_bias"])) if body.get("logit_bias") else None
        names = {
            "temperature": "temperature",
            "max_tokens": "max_new_tokens",
            "min_tokens": "min_new_tokens",
        }
        sampling = Sampling(
            stop=body["stop"], **{ours: body[theirs] for theirs, ours in names.items()}
        )
        engine = NativeEngine()
        engine.setup(policy, body["seed"])
        prompt = Prompts([torch.tensor(body["prompt"])], [""], {}, torch.tensor([0]))
        rollout = engine.generate(prompt, body["n"], sampling, 0)
        choices = []
        for index, keep in enumerate(rollout.mask):
            choice = {"index": index, "token_ids": rollout.completion_ids[index][keep].tolist()}
            choice["logprobs"] = {"token_logprobs": rollout.stats.logprobs[index][keep].tolist()}
            choices.append(
                {**choice, "finish_reason": "stop" if rollout.ended[index] else "length"}
            )
        return {"choices": choices}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.server.key
        if (
            key is not None
            and self.path.startswith("/v1")
            and self.headers["Authorization"] != f"Bearer {key}"
        ):
            status, answer = 401, {"error": "Unauthorized"}
        else:
            status, answer = self.server.answer(self.path, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        share = self.server.dies.get(self.path, 1.0)
        self.close_connection = True
        if share == 0:
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        data, piece = data[: int(share * len(data))], 1 if self.server.pause else len(data)
        for start in range(0, len(data), piece):
            self.wfile.write(data[start : start + piece])
            time.sleep(self.server.pause)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def stand_in(name: str = "rlif-arithmetic") -> Iterator[StandIn]:
    """A running one."""
    with StandIn(Worker(PolicyModel(Policy(name)))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.over = True
            server.released.set()
            server.shutdown()
            with server.lock:  # what is being drawn; its thread may not outlive the interpreter
                pass
