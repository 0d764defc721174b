"""Sampling with tiny models, and the same completions scored again."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.external_samples import Drawn, Draws, as_rollout
from rlif_lightning.rollout.importance_weights import Correction
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.vllm_weights import merged_weights
from rlif_lightning.sampling import Sampling

QUESTIONS = ["3+4+5=", "1+2=", "12+34+56+78+9+1=", "7+7+7="]
GROUP = 4
SAMPLINGS = {
    "plain": Sampling(max_new_tokens=16),
    "hot": Sampling(temperature=1.6, max_new_tokens=16, min_new_tokens=5),
    "cold": Sampling(temperature=0.5, max_new_tokens=16, min_new_tokens=1),
}


def load(folder, eager_to_end: bool = True, **settings) -> PolicyModel:
    """A policy; with many tokens that end a completion, so that rows leave at all times."""
    policy = PolicyModel(Policy(str(folder), **settings))
    if eager_to_end:
        policy.eos_ids = list(range(2, 12))
    return policy


def prompts_of(policy: PolicyModel, rows: list[int]) -> Prompts:
    texts = [QUESTIONS[row] for row in rows]
    ids = [
        torch.tensor(policy.tokenizer(text, add_special_tokens=False).input_ids) for text in texts
    ]
    return Prompts(ids, texts, {}, torch.tensor(rows))


def generate(
    policy: PolicyModel, rows: list[int], sampling: Sampling, max_rows: int = 512, step: int = 0
) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=7)
    return engine.generate(prompts_of(policy, rows), GROUP, sampling, step)


def completions(rollout: Rollout) -> list[list[int]]:
    return [
        ids[keep].tolist() for ids, keep in zip(rollout.completion_ids, rollout.mask, strict=True)
    ]


@torch.no_grad()
def rescored(policy: PolicyModel, rollout: Rollout, sampling: Sampling) -> TokenStats:
    stats = TokenStats(*torch.zeros(3, *rollout.mask.shape))
    for packed in pack(rollout.completions, 60):
        part = policy(packed, sampling)
        for field in fields(TokenStats):
            getattr(stats, field.name)[packed.rows] = getattr(part, field.name).float()
    return stats


PROMPT_LENGTHS = [1, 17, 4, 9, 2, 30, 3, 3, 12, 7, 21, 5]


def many_prompts(policy: PolicyModel) -> Prompts:
    """Twelve prompts of 1 to 30 tokens, around Gemma's window of 6."""
    generator = torch.Generator().manual_seed(4)
    vocabulary = policy.causal_lm.config.vocab_size
    ids = [
        torch.randint(12, vocabulary, (length,), generator=generator) for length in PROMPT_LENGTHS
    ]
    return Prompts(ids, [""] * len(ids), {}, torch.arange(len(ids)))


def generate_many(
    policy: PolicyModel, max_rows: int, sampling: Sampling, group_size: int = GROUP
) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=11)
    return engine.generate(many_prompts(policy), group_size, sampling, 3)


class CastsOf(TorchDispatchMode):
    """Counts the casts of one tensor."""

    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.pointer, self.count = tensor.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # In inference mode operations arrive before they are taken apart.
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        if func in copies and args[0].data_ptr() == self.pointer:
            self.count += 1
        return func(*args, **(kwargs or {}))


class StaleEngine(NativeEngine):
    """Samples with the weights that training began with: a weight sync that was forgotten."""

    def setup(self, policy: PolicyModel, seed: int) -> None:
        if getattr(self, "policy", None) is None:
            super().setup(copy.deepcopy(policy), seed)


class Bfloat16Sampler(RolloutEngine):
    """The native engine on a bfloat16 copy of the policy.

    Args:
        noise: standard deviation of what is added to its log-probs, nats.
        max_ratio: as VLLMEngine's.
        exact: report the policy's own log-probs instead.
    """

    def __init__(self, noise: float = 0.0, max_ratio: float | None = None, exact: bool = False):
        self.noise, self.max_ratio, self.exact = noise, max_ratio, exact
        self.native = NativeEngine()

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy = policy
        self.copy = PolicyModel(
            Policy(policy.causal_lm.name_or_path, dtype="bfloat16"), frozen=True
        )
        self.copy.eos_ids = policy.eos_ids
        self.native.setup(self.copy, seed)

    def generate(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Rollout:
        self.copy.causal_lm.load_state_dict(dict(merged_weights(self.policy)), strict=False)
        rollout = self.native.generate(prompts, group_size, sampling, step)
        noise = self.noise * torch.randn(
            rollout.mask.shape, generator=torch.Generator().manual_seed(step % 97)
        )
        drawn = []
        for row, keep in enumerate(rollout.mask):
            logprobs = (rollout.stats.logprobs + noise)[row][keep].tolist()
            drawn.append(
                Drawn(
                    rollout.completion_ids[row][keep].tolist(), logprobs, bool(rollout.ended[row])
                )
            )
        correction = None if self.max_ratio is None else Correction(self.max_ratio)
        made = as_rollout(self.policy, Draws(drawn, prompts), sampling, 200, correction)
        made = replace(made, staleness=torch.zeros_like(made.lengths))
        if self.exact:
            made = replace(made, engine_logprobs=made.stats.logprobs)
            weights = torch.ones_like(made.stats.logprobs)
            made = replace(made, token_weights=None if self.max_ratio is None else weights)
        return made


def sampler(**settings: object) -> list[str]:
    given = [
        f"--model.engine.init_args.{name}={'null' if value is None else value}"
        for name, value in settings.items()
    ]
    return [f"--model.engine={__name__}.Bfloat16Sampler", *given]
