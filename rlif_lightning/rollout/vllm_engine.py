"""The vLLM engine: another sampler with a copy of the weights; everything the loss needs is computed by the policy.

The package vllm is imported when the engine is first used (extra `vllm`). See docs/vllm.md.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.collectives import (
    all_process_attempt,
    all_rank_max,
    all_rank_mean_std,
    is_distributed,
)
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.external_samples import Drawn, as_rollout
from rlif_lightning.rollout.vllm_local import LocalVLLM
from rlif_lightning.rollout.vllm_server import VLLMServer
from rlif_lightning.rollout.vllm_weights import fingerprint, merged_weights
from rlif_lightning.sampling import Sampling, request_seed

OURS = ("model", "load_format", "logprobs_mode", "worker_extension_cls")
PROBE_PROMPTS, PROBE_TOKENS = 8, 8
PROBE_SHARE = 5  # greedy tokens are the likeliest ones, whose log-probs rounding moves least
BIAS = -100.0  # the lowest that vLLM takes
NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class VLLMEngine(RolloutEngine):
    """Samples with vLLM in this process.

    Weights are copied to it before the first rollout after any change. Its log-probs are used for
    two things only: the logged gap, and weights of the policy loss that correct for it.

    Args:
        options: further arguments of `vllm.LLM`, such as gpu_memory_utilization or max_model_len.
        max_ratio: bound of a token's weight exp(policy's log-prob - engine's); null = no weights.
        max_gap: a training rollout with a larger mean |difference| of log-probs (nats) stops the
            run: the engine does not have the policy's weights then.
        scoring_tokens: token budget of one pass that scores completions.

    Raises:
        ValueError: a setting out of range, or an option that the engine decides.
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        max_ratio: float | None = 2.0,
        max_gap: float = 0.5,
        scoring_tokens: int = 8192,
    ):
        self.options = dict(options or {})
        taken = [name for name in OURS if name in self.options]
        if taken:
            raise ValueError(f"options={taken} are decided by the engine; take them out")
        if max_ratio is not None and max_ratio < 1:
            raise ValueError(f"max_ratio={max_ratio} must be at least 1, or null for no weights")
        if max_gap <= 0 or scoring_tokens < 1:
            raise ValueError(f"max_gap={max_gap}, scoring_tokens={scoring_tokens} must be positive")
        self.max_ratio, self.max_gap, self.scoring_tokens = max_ratio, max_gap, scoring_tokens
        self.sampler: LocalVLLM | VLLMServer | None = None
        self.loaded: Tensor | None = None
        self.probed = False

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed, self.probed = policy, seed, False

    def check(self, sampling: Sampling) -> None:
        if sampling.stop and sampling.min_new_tokens:
            raise ValueError(
                f"sampling.stop={list(sampling.stop)} with"
                f" min_new_tokens={sampling.min_new_tokens}: vLLM does not look"
                " for stop strings before that many tokens, unlike the native engine; set one of"
                " them only"
            )
        if self.sampler is None:
            self._check_place()

    def _check_place(self) -> None:
        """Refuse processes and an installation that the sampler could not start in."""
        if num_processes() > 1:
            raise ValueError(
                "engine VLLMEngine works in one process, and there are several; start a vLLM"
                " server, which they can"
                " share, and use --config configs/engine/vllm_server.yaml (docs/vllm.md), or train"
                " with"
                " --trainer.devices=1"
            )
        if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
            raise ValueError(
                'engine VLLMEngine needs the package vllm: pip install "rlif-lightning[vllm]" (on'
                " a CPU: docs/vllm.md);"
                " or sample with --config configs/engine/native.yaml"
            )

    @torch.no_grad()
    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        self.check(sampling)
        self.synchronize()
        if not self.probed:
            self._probe(prompts, sampling.max_new_tokens)
        drawn = all_process_attempt(
            lambda: self._draw(prompts, group_size, sampling, rollout_number)
        )
        rollout = as_rollout(
            self.policy, prompts, drawn, sampling, self.scoring_tokens, self.max_ratio
        )
        self._check_gap(rollout, sampling)
        return rollout

    def _probe(self, prompts: Prompts, max_new_tokens: int) -> None:
        """Compare a few greedy tokens' log-probs, before the first rollout (a collective).

        A model of the same shapes can have other settings, such as another base of its rotary
        positions.

        Raises:
            RuntimeError: they differ by more than a fifth of ``max_gap`` on average.
        """
        few = Prompts(
            prompts.token_ids[:PROBE_PROMPTS],
            prompts.texts[:PROBE_PROMPTS],
            {},
            prompts.index[:PROBE_PROMPTS],
        )
        tokens = min(PROBE_TOKENS, max_new_tokens)
        greedy = Sampling(temperature=0, max_new_tokens=tokens, min_new_tokens=tokens)
        drawn = all_process_attempt(lambda: self._draw(few, 1, greedy, 0))
        gap = _mean_gap(as_rollout(self.policy, few, drawn, greedy, self.scoring_tokens, None))
        if not gap <= self.max_gap / PROBE_SHARE:
            raise RuntimeError(
                f"vLLM's log-probs of greedy tokens differ from the policy's by {gap:.3g} nats on"
                " average (more than"
                f" max_gap={self.max_gap} / {PROBE_SHARE}): it serves another model, or this one"
                " with other settings"
                " (such as rope_theta); start it with the policy's own folder, or raise max_gap if"
                " its precision"
                " explains that"
            )
        self.probed = True

    def _draw(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Sequence[Drawn]:
        """This rank's completions, prompt-major."""
        assert self.sampler is not None
        self._check_length(prompts, sampling, self.sampler.max_length)
        ids = [each.tolist() for each in prompts.token_ids]
        rows = prompts.index.tolist()
        requests = [
            self.request(sampling, group_size, request_seed(self.seed, rollout_number, row))
            for row in rows
        ]
        groups = self.sampler.generate(ids, requests)
        # vLLM draws a greedy completion once; the copies of a group would be the same.
        return [
            each
            for group in groups
            for each in (group if len(group) == group_size else group * group_size)
        ]

    def synchronize(self) -> bool:
        """Give the engine the policy's weights if they changed since the last time (a collective); whether they had."""
        if self.sampler is None:
            self.sampler = all_process_attempt(self._start)
        now = fingerprint(self.policy)
        changed = self.loaded is None or not torch.equal(now, self.loaded)
        if not all_rank_max(
            torch.tensor(float(changed), device=now.device)
        ):  # ranks may hold different parts
            return False
        self.loaded = None
        self.sampler.load(merged_weights(self.policy))
        self.loaded = now
        return True

    def request(self, sampling: Sampling, group_size: int, seed: int) -> dict[str, Any]:
        """A prompt's request: names that vLLM's ``SamplingParams`` and ``/v1/completions`` have in common.

        Everything is said, since a server takes what is not from the model's
        generation_config.json.
        """
        return {
            "n": group_size if sampling.temperature else 1,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "stop": list(sampling.stop),
            "stop_token_ids": self.policy.eos_ids,
            "logprobs": 0,  # the drawn token's alone
            "logit_bias": self._no_tokens(),
            **NEUTRAL,
        }

    def _no_tokens(self) -> dict[int, float] | None:
        """A bias that leaves ids beyond the tokenizer e^-100 of their odds, under ``vocabulary: tokenizer``."""
        if self.policy.num_tokens is None:
            return None
        size = self.policy.causal_lm.config.get_text_config().vocab_size
        return dict.fromkeys(range(self.policy.num_tokens, size), BIAS) or None

    def _start(self) -> LocalVLLM | VLLMServer:
        return LocalVLLM(self.policy.causal_lm.name_or_path, self.local_options())

    def local_options(self) -> dict[str, Any]:
        """Arguments of ``vllm.LLM``: the policy's revision, for its configuration and its tokenizer, and the user's."""
        settings = self.policy.settings
        given = {"revision": settings.revision, "tokenizer_revision": settings.revision}
        return {**given, "trust_remote_code": settings.trust_remote_code, **self.options}

    @staticmethod
    def _check_length(prompts: Prompts, sampling: Sampling, max_length: int) -> None:
        needed = max(map(len, prompts.token_ids)) + sampling.max_new_tokens
        if needed > max_length:
            raise ValueError(
                f"vLLM's max_model_len={max_length} is less than the longest prompt and"
                " sampling.max_new_tokens="
                f"{sampling.max_new_tokens} together, {needed}: it would cut completions; raise"
                " max_model_len"
            )

    def _check_gap(self, rollout: Rollout, sampling: Sampling) -> None:
        if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1:
            return  # the engine's log-probs are of the truncated distribution
        gap = _mean_gap(rollout)
        if not gap <= self.max_gap:
            raise RuntimeError(
                f"vLLM's log-probs differ from the policy's by {gap:.3g} nats a token on average"
                " (max_gap="
                f"{self.max_gap}): it does not sample from the policy; raise max_gap if its"
                " precision explains that"
            )


def _mean_gap(rollout: Rollout) -> float:
    """Mean |difference| of the engine's and the policy's log-probs over all ranks (a collective), nats."""
    assert rollout.engine_logprobs is not None
    differences = (rollout.engine_logprobs - rollout.stats.logprobs).abs()
    return float(all_rank_mean_std(differences, rollout.mask)[0])


class VLLMServerEngine(VLLMEngine):
    """Samples with a vLLM server that the user has started, on this machine or another; processes share it.

    Everything else is as ``VLLMEngine``'s.

    Args:
        server: where it listens, `http://host:port`.
        weights_folder: a folder that the server and the first trainer process see under the same
            name: weights are handed over there.
        timeout: seconds for loading weights, and for the completions of one rollout besides those
            for their tokens.
        max_ratio: bound of a token's weight exp(policy's log-prob - engine's); null = no weights.
        max_gap: a training rollout with a larger mean |difference| of log-probs (nats) stops the
            run: the engine does not have the policy's weights then.
        scoring_tokens: token budget of one pass that scores completions.
        key_variable: name of the environment variable that holds the server's API key, sent as
            `Authorization: Bearer`; null = it needs none. The key itself is never a setting, so
            that no configuration or checkpoint holds it.
        timeout_per_token: seconds more for each token that a rollout's completions may have
            (max_new_tokens for each of all processes): the slowest rate that is waited for.

    Raises:
        ValueError: a setting out of range, or no URL.
    """

    def __init__(
        self,
        server: str,
        weights_folder: str,
        timeout: float = 600.0,
        max_ratio: float | None = 2.0,
        max_gap: float = 0.5,
        scoring_tokens: int = 8192,
        key_variable: str | None = None,
        timeout_per_token: float = 0.001,
    ):
        super().__init__(None, max_ratio, max_gap, scoring_tokens)
        if urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
            raise ValueError(f"server={server!r} must be a URL, http://host:port")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} must be positive, in seconds")
        if not timeout_per_token >= 0:
            raise ValueError(
                f"timeout_per_token={timeout_per_token} must be at least 0, in seconds"
            )
        if key_variable is not None and not key_variable.isidentifier():
            raise ValueError(
                "key_variable must be the name of an environment variable, and not the key itself"
            )
        self.server, self.weights_folder = server, weights_folder
        self.timeout, self.timeout_per_token, self.key_variable = (
            timeout,
            timeout_per_token,
            key_variable,
        )

    def _check_place(self) -> None:
        if num_processes() > 1 and not is_distributed():
            raise ValueError(
                "engine VLLMServerEngine does not work under tensor parallelism"
                " (trainer.strategy), whose processes"
                " have the same rows; use NativeEngine, or --config configs/strategy/fsdp2.yaml"
            )

    def _start(self) -> VLLMServer:
        config = self.policy.causal_lm.config
        return VLLMServer(
            self.server,
            self.weights_folder,
            self.timeout,
            config,
            self.key_variable,
            self.timeout_per_token,
        )
