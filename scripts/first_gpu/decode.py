"""Measure decoding: launches, waits and uploads of a step, tokens per second; and transformers'."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from passes import autocast
from shapes import random_model, random_policy, random_prompts, tried
from torch.profiler import ProfilerActivity, profile

from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
SHORT, LONG = (
    4,
    12,
)  # tokens of the two rollouts whose difference is counted: prefill and set-up cancel out
Work = Callable[[int], Any]


def counts(work: Work, tokens: int) -> Counter[str]:
    """Count launches, waits, uploads and downloads of one rollout."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work(tokens)
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        found["launches"] += event.count * (event.key in LAUNCHES)
        found["waits"] += event.count * (event.key in WAITS)
        found["uploads"] += event.count * event.key.startswith("Memcpy HtoD")
        found["downloads"] += event.count * event.key.startswith("Memcpy DtoH")
    return found


def seconds(work: Work, tokens: int) -> float:
    """Return the seconds of one rollout."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work(tokens)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(work: Work, rows: int, profiled: bool) -> dict[str, Any]:
    """Measure one way to decode."""
    work(SHORT)
    torch.cuda.reset_peak_memory_stats()
    steps = LONG - SHORT
    found: dict[str, Any] = {}
    if profiled:
        short, long = counts(work, SHORT), counts(work, LONG)
        found = {f"{name} of a step": round((long[name] - short[name]) / steps, 1) for name in long}
    more = 4 * LONG
    slow = seconds(work, more + SHORT) - seconds(work, SHORT)
    found["milliseconds of a step"] = round(1000 * slow / more, 2)
    found["tokens per second"] = round(rows * more / slow)
    found["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def native(shape: str, precision: str, prompts: int, group: int) -> dict[str, Any]:
    """Decode with the native engine; no completion ends before its length."""
    policy = random_policy(shape, "cuda")
    vocabulary = policy.vocab_size
    given = random_prompts(prompts, 32, vocabulary, "cuda")

    def work(tokens: int) -> Any:
        engine = NativeEngine()
        engine.setup(policy, 0)
        with torch.no_grad(), autocast("cuda", precision):
            return engine.generate(
                given, group, Sampling(max_new_tokens=tokens, min_new_tokens=tokens), 0
            )

    return measured(work, prompts * group, profiled=prompts * group <= 64)


def transformers_own(shape: str, precision: str, prompts: int, group: int) -> dict[str, Any]:
    """Decode with transformers' ``generate``, under autocast with cached weight casts."""
    model = (
        random_policy("embedded", "cuda").causal_lm
        if shape == "embedded"
        else random_model(shape, "cuda")
    )
    model.set_attn_implementation("sdpa")
    vocabulary = model.config.vocab_size
    ids = torch.stack(
        list(random_prompts(prompts, 32, vocabulary, "cuda").token_ids)
    ).repeat_interleave(group, 0)
    mask = torch.ones_like(ids)

    def work(tokens: int) -> Any:
        cast = torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.no_grad(), cast:
            lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            return model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=0, pad_token_id=0, **lengths
            )

    return measured(work, prompts * group, profiled=prompts * group <= 64)


def decode(shape: str) -> dict[str, Any]:
    """Measure one shape in both precisions, with few rows (counted) and with many."""
    found: dict[str, Any] = {}
    for precision in ("float32", "bf16-mixed"):
        for prompts, group in ((4, 4), (32, 8)):
            given = (shape, precision, prompts, group)
            name = f"{precision}, {prompts * group} rows"
            found[name] = {"native": tried(partial(native, *given))}
            if shape != "embedded":
                found[name]["transformers"] = tried(partial(transformers_own, *given))
    return found
