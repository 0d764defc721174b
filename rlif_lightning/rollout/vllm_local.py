"""vLLM inside this process: the sampler of ``VLLMEngine``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlif_lightning.rollout.external_samples import Drawn

WORKER = "rlif_lightning.rollout.vllm_worker.PolicyWorker"
# vLLM reads these when it is imported or built. A value that the user has set stays.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class LocalVLLM:
    """An ``LLM`` in this process, built without reading weights, which come from the policy.

    Args:
        model: folder or hub name of the model's configuration and tokenizer.
        options: further arguments of ``vllm.LLM``.

    Raises:
        ValueError: vLLM cannot be imported, or does not take the model with these options.
    """

    def __init__(self, model: str, options: dict[str, Any]):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Weights are passed by reference, so the worker must be in this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            # The package is optional, so an import statement would fail type checks without it.
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ValueError(
                "engine VLLMEngine: the package vllm is installed and cannot be imported:"
                f" {error}; docs/vllm.md says which versions go together"
            ) from error
        self.vllm = vllm
        fixed = {
            "load_format": "dummy",
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": WORKER,
        }
        with isolate_rng():  # vLLM seeds every generator of the process
            try:
                self.llm = vllm.LLM(model=model, **fixed, **options)
            except ValueError as error:  # pydantic's errors have many lines
                said = " ".join(str(error).split())
                raise ValueError(
                    f"vLLM refuses model.policy.name={model!r} with"
                    f" model.engine.init_args.options={options}: {said}"
                ) from error
        self.max_length: int = self.llm.llm_engine.model_config.max_model_len

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights, and discard the keys and values of the old ones.

        Raises:
            RuntimeError: vLLM kept its prefix cache.
        """
        self.llm.collective_rpc("load_policy", kwargs={"weights": weights})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache after the weights had changed")

    def generate(
        self, prompt_ids: Sequence[list[int]], requests: Sequence[dict[str, Any]]
    ) -> list[list[Drawn]]:
        """Draw ``n`` completions for each prompt, in order."""
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        settings = [
            self.vllm.SamplingParams(**request, detokenize=bool(request["stop"]))
            for request in requests
        ]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # vLLM has a precision of its own, so autocast is off.
        with torch.autocast(device, enabled=False), isolate_rng():
            outputs = self.llm.generate(prompts, settings, use_tqdm=False)
        return [
            [_drawn(each) for each in sorted(o.outputs, key=lambda each: each.index)]
            for o in outputs
        ]


def _drawn(output: Any) -> Drawn:
    ids = list(output.token_ids)
    logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs, strict=True)]
    return Drawn(ids, logprobs, output.finish_reason == "stop")
