"""The vLLM engines: vLLM in this process, or a vLLM server that processes share.

The package vllm is imported when the engine is first used (extra `vllm`). See docs/vllm.md.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.collectives import (
    all_process_attempt,
    all_rank_max,
    is_distributed,
)
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.draws_ahead import DrawsAhead
from rlif_lightning.rollout.external_samples import Draws
from rlif_lightning.rollout.vllm_base import VLLMBaseEngine
from rlif_lightning.rollout.vllm_local import LocalVLLM
from rlif_lightning.rollout.vllm_server import VLLMServer
from rlif_lightning.sampling import Sampling

TIMEOUT_PER_TOKEN = 0.001  # seconds
OURS = ("model", "load_format", "logprobs_mode", "worker_extension_cls")


class VLLMEngine(VLLMBaseEngine):
    """An engine that samples with vLLM in this process.

    Weights are copied to it before the first rollout after any change. Its log-probs are used for
    two things only: the logged gap, and the token weights of the policy loss that correct for it.

    Args:
        options: further arguments of `vllm.LLM`, such as gpu_memory_utilization or max_model_len.
        max_ratio: bound of a token's weight exp(policy's log-prob - engine's); null = no weights.
        correction: token_truncate | token_mask | sequence_truncate | sequence_mask: a larger
            ratio, of a token or of its whole completion, is cut to max_ratio or counts as 0;
            or token_icepop: also one below 1 / max_ratio counts as 0.
        max_gap: a training rollout with a larger mean |difference| of log-probs (nats) stops the
            run: the engine does not have the policy's weights then.

    Raises:
        ValueError: a setting out of range, or an option that the engine sets itself.
    """

    memory = "vllm"
    needs_consent: ClassVar[dict[str, str]] = {"options": "may name code that vLLM would import"}

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        max_ratio: float | None = 2.0,
        max_gap: float = 0.5,
        correction: str = "token_truncate",
    ):
        self.options = dict(options or {})
        taken = [name for name in OURS if name in self.options]
        if taken:
            raise ValueError(f"options={taken} are decided by the engine; remove them")
        super().__init__(max_ratio, max_gap, correction)

    def _check_place(self) -> None:
        if num_processes() > 1:
            raise ValueError(
                "engine VLLMEngine works in one process, and there are several; start a vLLM"
                " server, which they can share, and use --config configs/engine/vllm_server.yaml"
                " (docs/vllm.md), or train with --trainer.devices=1"
            )
        if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
            raise ValueError(
                'engine VLLMEngine needs the package vllm: pip install "rlif-lightning[vllm]" (on'
                " a CPU: docs/vllm.md); or sample with --config configs/engine/native.yaml"
            )

    def _start(self) -> LocalVLLM:
        return LocalVLLM(self.policy.causal_lm.name_or_path, self.local_options())

    def local_options(self) -> dict[str, Any]:
        """Return the arguments of ``vllm.LLM``: the policy's revision, and the user's options."""
        settings = self.policy.settings
        given = {"revision": settings.revision, "tokenizer_revision": settings.revision}
        return {**given, "trust_remote_code": settings.trust_remote_code, **self.options}


class VLLMServerEngine(VLLMBaseEngine):
    """An engine that samples with a vLLM server, which the user has started and processes share.

    The server may run on another machine. Everything else is like ``VLLMEngine``.

    Args:
        server: its address, `http://host:port`.
        weights_folder: a folder that the server and the first trainer process see under the same
            name; weights are passed as a file there.
        timeout: seconds for loading weights, and for the completions of one rollout in addition to
            0.001 for each token that they may have (max_new_tokens for each completion of all
            processes). A server that draws fewer than 1000 tokens a second needs more. Under an
            environment these are the turns of one round instead of the rollout.
        max_ratio: bound of a token's weight exp(policy's log-prob - engine's); null = no weights.
        correction: token_truncate | token_mask | sequence_truncate | sequence_mask: a larger
            ratio, of a token or of its whole completion, is cut to max_ratio or counts as 0;
            or token_icepop: also one below 1 / max_ratio counts as 0.
        max_gap: a training rollout with a larger mean |difference| of log-probs (nats) stops the
            run: the engine does not have the policy's weights then.
        key_variable: name of the environment variable that holds the server's API key, sent as
            `Authorization: Bearer`; null = it needs none. The key itself is never a setting, so
            that no configuration or checkpoint holds it.
        staleness: on how many rollouts the policy may have trained since it had the weights that
            draw a completion; so many coming rollouts are drawn while it trains. 0 = each rollout
            is drawn with the present weights, before its update.

    Raises:
        ValueError: a setting out of range, staleness without weights, or no URL.
    """

    needs_consent: ClassVar[dict[str, str]] = {
        "server": "is where prompts, and the key, would be sent"
    }

    def __init__(
        self,
        server: str,
        weights_folder: str,
        timeout: float = 600.0,
        max_ratio: float | None = 2.0,
        max_gap: float = 0.5,
        key_variable: str | None = None,
        correction: str = "token_truncate",
        staleness: int = 0,
    ):
        super().__init__(max_ratio, max_gap, correction)
        if urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
            raise ValueError(f"server={server!r} must be a URL, http://host:port")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} must be positive, in seconds")
        if key_variable is not None and not key_variable.isidentifier():
            raise ValueError(
                "key_variable must be the name of an environment variable, and not the key itself"
            )
        if staleness < 0 or (staleness and max_ratio is None):
            raise ValueError(
                f"staleness={staleness} with max_ratio={max_ratio}: staleness must be at least 0,"
                " and completions of old weights need max_ratio, which corrects the loss for them"
            )
        self.staleness = staleness
        self.ahead = DrawsAhead(self._draw)
        self.upcoming: Callable[[int], Prompts | None] | None = None
        self.server, self.weights_folder = server, weights_folder
        self.timeout, self.key_variable = timeout, key_variable

    def _check_place(self) -> None:
        if num_processes() > 1 and not is_distributed():
            raise ValueError(
                "engine VLLMServerEngine does not work under tensor parallelism"
                " (trainer.strategy), whose processes work on the same completions; use"
                " NativeEngine, or --config configs/strategy/fsdp2.yaml"
            )

    def _start(self) -> VLLMServer:
        return VLLMServer(
            self.server,
            self.weights_folder,
            self.timeout,
            self.policy.causal_lm.config,
            self.key_variable,
            TIMEOUT_PER_TOKEN,
        )

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.discard_ahead()
        self.upcoming = None
        super().setup(policy, seed)

    def look_ahead(self, upcoming: Callable[[int], Prompts | None], rollout_number: int) -> None:
        self.upcoming = upcoming
        if self.staleness and rollout_number:
            rank_zero_info(
                f"rollout {rollout_number} is drawn with the present weights (staleness 0): no"
                " checkpoint holds what had been drawn ahead, so a run with"
                f" model.engine.staleness={self.staleness} does not resume bit for bit"
            )

    def discard_ahead(self) -> None:
        if isinstance(self.sampler, VLLMServer):  # otherwise nothing has been drawn
            with self.sampler.client.closing() as close:
                count = self.ahead.discard(close)
            if count:
                rank_zero_info(
                    f"{count} rollouts that were drawn ahead are dropped"
                    f" ({self.ahead.num_discarded} so far)"
                )
        super().discard_ahead()

    def synchronize(self) -> bool:
        self.ahead.wait()  # weights never change in the middle of a draw
        return super().synchronize()

    def _completions(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> tuple[Draws, int | None]:
        if not self.staleness:
            return super()._completions(prompts, group_size, sampling, rollout_number)
        place = (group_size, sampling, rollout_number)
        claimed = None
        if self.ahead.pending:  # on all processes or on none
            claimed = self.ahead.claim(all_process_attempt(lambda: self._asked(prompts, *place)))
        is_missing = torch.tensor(float(claimed is None), device=prompts.index.device)
        # All processes use their own draws, or all draw anew.
        if all_rank_max(is_missing) or claimed is None:
            (draws, _), staleness = super()._completions(prompts, *place), 0
        else:
            draws = all_process_attempt(claimed.future.result)
            # A loader makes coming prompts, which nobody has moved to the policy's device.
            draws = replace(draws, prompts=draws.prompts.to(prompts.index.device))
            staleness = rollout_number - claimed.weights_of
        self._draw_ahead(*place)
        return draws, staleness

    def _draw_ahead(self, group_size: int, sampling: Sampling, rollout_number: int) -> None:
        """Start the draws of the coming rollouts with the present weights (a collective).

        Nothing is started while an earlier draw has not been used. So the weights change only
        while no process draws.
        """
        if self.upcoming is None or self.ahead.pending:
            return
        numbers = range(rollout_number + 1, rollout_number + 1 + self.staleness)
        coming = {number: self.upcoming(number) for number in numbers}
        known = {number: prompts for number, prompts in coming.items() if prompts is not None}
        if known:
            self.synchronize()
            orders = all_process_attempt(
                lambda: [
                    self._asked(prompts, group_size, sampling, number)
                    for number, prompts in known.items()
                ]
            )
            self.ahead.start(orders, rollout_number)
