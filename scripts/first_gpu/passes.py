"""Measure the packed pass: log-probs against a CPU's, attention kernels, seconds of an update."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, random_policy, random_prompts, tried
from torch.profiler import ProfilerActivity, profile

from rlif_lightning.learning.old_logprobs import rollout_logprobs
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=48)
GROUP, BUDGET = 8, 8192


def autocast(device: str, precision: str) -> Any:
    """Return the autocast in which the trainer runs a step."""
    return (
        torch.autocast(device, torch.bfloat16, cache_enabled=False)
        if precision == "bf16-mixed"
        else nullcontext()
    )


def moved(rollout: Rollout, device: str) -> Rollout:
    """Return the completions on another device, with only what a forward pass reads."""
    kept = (
        rollout.completion_ids.to(device),
        rollout.mask.to(device),
        rollout.stats.map(lambda x: x.to(device)),
    )
    return Rollout(
        rollout.prompts.to(device),
        *kept,
        rollout.texts,
        rollout.ended.to(device),
        rollout.group_size,
    )


def on_the_cpu() -> tuple[PolicyModel, Rollout]:
    """Build a policy and a rollout of uneven prompts."""
    policy, engine = random_policy("embedded", "cpu"), NativeEngine()
    texts = [f"{'+'.join(str(7 * n + t) for t in range(2 + n % 3))}=" for n in range(16)]
    ids = [torch.tensor(policy.tokenizer(text)["input_ids"]) for text in texts]
    engine.setup(policy, 0)
    return policy, engine.generate(Prompts(ids, texts, {}, torch.arange(16)), GROUP, SAMPLING, 0)


def scored(policy: PolicyModel, rollout: Rollout, device: str, precision: str) -> torch.Tensor:
    """Return the log-probs of a rollout, on the CPU."""
    completions = moved(rollout, device).completions
    with autocast(device, precision):
        found = rollout_logprobs(policy.to(device), completions, SAMPLING, BUDGET)
    return found.cpu().double()


def spread(difference: torch.Tensor) -> dict[str, float]:
    """Summarise differences in nats."""
    return {"largest": float(difference.abs().max()), "mean": float(difference.abs().mean())}


def equal(_: Path) -> dict[str, Any]:
    """Return the largest differences of log-probs (nats) between devices and precisions."""
    policy, rollout = on_the_cpu()
    mask = rollout.mask
    truth = scored(policy.double(), rollout, "cpu", "float64")
    policy.float()
    found = {}
    for device in ("cpu", "cuda"):
        for precision in ("float32", "bf16-mixed"):
            found[f"{device} {precision}"] = tried(
                lambda d=device, p=precision: spread((scored(policy, rollout, d, p) - truth)[mask])
            )
    engine = NativeEngine()
    engine.setup(policy.to("cuda"), 0)
    same = engine.generate(rollout.prompts.to("cuda"), GROUP, SAMPLING, 0)
    width = min(same.mask.shape[1], mask.shape[1])
    rows = (same.completion_ids.cpu()[:, :width] == rollout.completion_ids[:, :width]).all(1)
    found["completions of the GPU equal to the CPU's"] = f"{int(rows.sum())} of {len(rows)}"
    rescored = scored(policy, moved(same, "cpu"), "cuda", "float32")
    found["sampled against scored, float32"] = float(
        (same.stats.logprobs.cpu() - rescored)[same.mask.cpu()].abs().max()
    )
    return found


def attention_kernels(policy: PolicyModel, prompts: Prompts, precision: str) -> dict[str, int]:
    """Return names and numbers of the attention operations of one forward pass."""
    engine = NativeEngine()
    engine.setup(policy, 0)
    sampling = Sampling(max_new_tokens=16, min_new_tokens=16)
    with autocast("cuda", precision):
        rollout = engine.generate(prompts, 4, sampling, 0)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            rollout_logprobs(policy, rollout.completions, sampling, BUDGET)
    marks = ("flash", "fmha", "cudnn", "softmax")
    return {
        e.key[:60]: e.count
        for e in profiled.key_averages()
        if any(mark in e.key.lower() for mark in marks)
    }


def kernels(_: Path) -> dict[str, Any]:
    """List attention kernels of a packed pass of SmolLM2's shape, with two sets of prompts."""
    policy, found = random_policy("SmolLM2-135M", "cuda"), {}
    for name in ("even", "uneven"):
        prompts = random_prompts(4, 64, 100, "cuda")
        if name == "uneven":
            cut = [ids[: 64 - 7 * n] for n, ids in enumerate(prompts.token_ids)]
            prompts = Prompts(cut, [""] * 4, {}, prompts.index)
        for precision in ("float32", "bf16-mixed"):
            found[f"{name}, {precision}"] = tried(
                partial(attention_kernels, policy, prompts, precision)
            )
    return found


# The benchmark's own default, and two of SHAPES.
STEPS = ("1M", "SmolLM2-135M", "SmolLM2-135M-graphs", "Qwen2.5-1.5B")


def flags_of(shape: str) -> list[str]:
    """Return a shape as flags of ``benchmarks/step.py``."""
    if shape not in SHAPES:
        return []
    config: Any = SHAPES[shape]
    return [
        f"--hidden={config.hidden_size}",
        f"--layers={config.num_hidden_layers}",
        f"--heads={config.num_attention_heads}",
        f"--kv-heads={config.num_key_value_heads}",
        f"--intermediate={config.intermediate_size}",
        f"--vocab={config.vocab_size}",
    ]


def steps(shape: str, out: Path) -> dict[str, Any]:
    """Run training steps by ``benchmarks/step.py``: tokens per second, seconds, memory.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    work = [
        "--lengths=random",
        "--group-size=8",
        "--prompts-per-rollout=16",
        "--max-new-tokens=256",
        "--steps=3",
    ]
    work += ["--cuda-graphs"] * shape.endswith("-graphs")
    work += flags_of(shape.removesuffix("-graphs"))
    work += ["--gradient-checkpointing"] * (shape == "Qwen2.5-1.5B")
    command = [
        sys.executable,
        "benchmarks/step.py",
        "--accelerator=cuda",
        "--bf16",
        "--tie-embeddings",
    ]
    command += [*work, "--micro-batch=32", f"--out={out / 'step.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    found = json.loads((out / "step.json").read_text())
    return {
        name: value
        for name, value in found.items()
        if name not in ("config", "versions", "framework")
    }
