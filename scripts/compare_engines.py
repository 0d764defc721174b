"""Compare the vLLM engine with the native one on the same prompts.

    python scripts/compare_engines.py --model models/smollm2-135m --prompts 32 --out compare.json

Both engines sample from the same policy, and their completions are measured in the same way (votes,
self-certainty, accuracy). Then a copy of the policy takes optimizer steps, once with vLLM's weights
left stale and once with the new weights passed to it. The gap between the two samplers' log-probs
must show the difference. Wall times depend on the other load of the machine; CPU seconds are those
of this process with all its threads. Without vLLM the script says so and exits with status 0. With
``--server http://host:port`` (docs/vllm.md) that server draws, and phases are wall times.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rlif_lightning.answers.final_answers import AnswerExtractor, is_correct
from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.data.sources import ReasoningGym
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import select_groups
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.masked import masked_mean
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout
from rlif_lightning.rewards.voting import vote_shares
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.external_samples import Draws, as_rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.vllm_base import VLLMBaseEngine
from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine
from rlif_lightning.rollout.vllm_weights import fingerprint
from rlif_lightning.sampling import Sampling

EXAMPLES = [("5 + 7", 12), ("9 - 6", 3), ("8 + 4", 12)]
QUESTION = "State the final answer to the following arithmetic problem: {} ="


def problems(model: str, size: int, group_size: int) -> PromptData:
    """Return the prompts of configs/smollm2_cpu.yaml."""
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    data = PromptData(
        source=ReasoningGym("chain_sum", size=size, validation_size=1, config=config),
        tokenizer=model,
        answer_column="answer",
        format=PromptFormat(
            chat=True,
            examples=[
                {"question": QUESTION.format(q), "answer": f"{q} = {a}"} for q, a in EXAMPLES
            ],
        ),
        group_size=group_size,
        prompts_per_rollout=size,
    )
    data.setup("fit")
    return data


def figures(rollout: Rollout, gold: list[str]) -> dict[str, float]:
    """Return what rewards and evaluation measure of a rollout."""
    size = rollout.group_size
    answers = [AnswerExtractor()(text) for text in rollout.texts]
    right = [is_correct(answer, gold[row // size]) for row, answer in enumerate(answers)]
    votes = vote_shares(answers, size)
    certainty = masked_mean(rollout.stats.self_certainty, rollout.mask, -1)
    lengths = rollout.lengths.double()
    return {
        "accuracy": sum(right) / len(right),
        "vote": float(votes.nan_to_num(0.0).double().mean()),
        "self_certainty": float(certainty.double().mean()),
        "self_certainty_std": float(certainty.double().std()),
        "entropy": float(masked_mean(rollout.stats.entropy, rollout.mask)),
        "length": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "ended": float(rollout.ended.double().mean()),
        "parseable": sum(answer is not None for answer in answers) / len(answers),
    }


def gap(rollout: Rollout) -> dict[str, float]:
    """Return how much the engine's log-probs differ from the policy's."""
    assert rollout.engine_logprobs is not None
    sizes = (rollout.engine_logprobs - rollout.stats.logprobs)[rollout.mask].abs()
    return {"mean": float(sizes.mean()), "max": float(sizes.max())}


def measure(
    engine: RolloutEngine, prompts: Any, settings: argparse.Namespace, gold: list[str]
) -> dict[str, Any]:
    """Measure some rollouts of the same prompts after a warm-up; return means over rollouts."""
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    engine.generate(prompts, settings.group_size, sampling, 0)
    found, tokens, gaps = [], 0, []
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, settings.rollouts + 1):
        rollout = engine.generate(prompts, settings.group_size, sampling, step)
        tokens += int(rollout.lengths.sum())
        found.append(figures(rollout, gold))
        if rollout.engine_logprobs is not None:
            gaps.append(gap(rollout))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    speed = {
        "cpu_s_per_rollout": cpu / settings.rollouts,
        "tokens_per_cpu_s": tokens / cpu,
        "tokens_per_s": tokens / wall,
    }
    return {"speed": speed, "completions": means, "gap": gaps}


def phases(engine: VLLMBaseEngine, prompts: Any, settings: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds of a rollout's parts: passing weights, drawing, measuring tokens."""
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    clock = time.perf_counter if settings.server else time.process_time
    engine.loaded = None
    times = [clock()]
    engine.synchronize()
    times.append(clock())
    assert engine.sampler is not None
    requests = [
        engine.request(sampling, settings.group_size, 1000 + 64 * row)
        for row in range(len(prompts))
    ]
    groups = engine.sampler.generate([ids.tolist() for ids in prompts.token_ids], requests)
    times.append(clock())
    draws = Draws([each for group in groups for each in group], prompts)
    as_rollout(engine.policy, draws, sampling, engine.scoring_tokens, engine.weighting)
    times.append(clock())
    return dict(zip(("sync", "draw", "score"), [b - a for a, b in pairwise(times)], strict=True))


def train(policy: PolicyModel, rollout: Rollout, learning_rate: float, steps: int) -> None:
    """Take optimizer steps on random advantages, so that weights differ from the sampler's."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    shape = rollout.mask.shape
    calls = OptimizerCalls(lambda share, _: share.backward(), policy.zero_grad, float)
    sampling = Sampling(max_new_tokens=shape[1])
    updater = Updater(policy, Clipped(), sampling, TokenBudget(8192), calls)
    old = rollout.stats.logprobs
    for step in range(steps):
        noise = torch.randn(shape[0], 1, generator=torch.Generator().manual_seed(step)).expand(
            shape
        )
        inputs = LossInputs(old, old, noise, rollout.mask, rollout.completion_numbers(0))
        groups = list(range(rollout.num_prompts))
        mini_batch = select_groups(inputs, rollout.completions, groups)
        updater.accumulate_gradient(mini_batch, UpdateMeter(old.device))
        torch.nn.utils.clip_grad_norm_(list(policy.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def staleness(engine: VLLMBaseEngine, prompts: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """Measure the gap with fresh weights, with stale ones, and after they were passed again."""
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    few = replace(
        prompts, token_ids=prompts.token_ids[:8], texts=prompts.texts[:8], index=prompts.index[:8]
    )
    rollout = engine.generate(few, settings.group_size, sampling, 0)
    found = {"fresh": gap(rollout)}
    with torch.enable_grad():
        train(engine.policy, rollout, settings.learning_rate, settings.steps)
    engine.loaded = fingerprint(engine.policy)  # as if they had been handed over
    found["stale"] = gap(engine.generate(few, settings.group_size, sampling, 1))
    engine.loaded = None
    found["synchronised"] = gap(engine.generate(few, settings.group_size, sampling, 1))
    return found


def vllm_engine(settings: argparse.Namespace) -> VLLMBaseEngine:
    """Return the engine in this process, or of the server that was named."""
    if settings.server:
        return VLLMServerEngine(settings.server, settings.weights_folder, max_gap=100.0)
    options: dict[str, Any] = {
        "dtype": settings.engine_dtype,
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 256,
    }
    options |= {"kv_cache_memory_bytes": 2**30, "enable_chunked_prefill": False}
    return VLLMEngine(options=options, max_gap=100.0)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument(
        "--engine-dtype", default="bfloat16", help="of vLLM's weights; the policy is float32"
    )
    parser.add_argument(
        "--server", default=None, help="URL of a vLLM server instead of vLLM in process"
    )
    parser.add_argument(
        "--weights-folder", default="runs/vllm_weights", help="seen by the server too"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument(
        "--steps", type=int, default=2, help="optimizer steps before the check of stale weights"
    )
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def compared(policy: PolicyModel, prompts: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """Measure both engines, and vLLM's phases and gaps."""
    native, vllm = NativeEngine(), vllm_engine(settings)
    report: dict[str, Any] = {
        "settings": {name: str(value) for name, value in vars(settings).items()}
    }
    report["threads"] = torch.get_num_threads()
    for name, engine in (("native", native), ("vllm", vllm)):
        engine.setup(policy, 0)
        report[name] = measure(engine, prompts, settings, prompts.columns["answer"])
        print(name, json.dumps(report[name], indent=1), flush=True)
    report["phases"] = phases(vllm, prompts, settings)
    report["weights"] = staleness(vllm, prompts, settings)
    # The CPU seconds of a server are not visible here.
    unit = "tokens_per_s" if settings.server else "tokens_per_cpu_s"
    ratio = report["vllm"]["speed"][unit] / report["native"]["speed"][unit]
    report[f"vllm / native, {unit}"] = ratio
    shown = {name: report[name] for name in ("phases", "weights")}
    print(json.dumps(shown, indent=1), f"\nratio {ratio:.2f}")
    return report


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    settings = parsed()
    if settings.server is None and importlib.util.find_spec("vllm") is None:
        print("skipped: vllm is not installed (docs/vllm.md says how to)")
        return
    policy = PolicyModel(Policy(settings.model))
    data = problems(settings.model, settings.prompts, settings.group_size)
    prompts = data.train_dataloader().split.batch(list(range(settings.prompts)))
    report = compared(policy, prompts, settings)
    if settings.out is not None:
        settings.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
