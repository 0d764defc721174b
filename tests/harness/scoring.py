"""Packed scoring and its gradients, and the same by the plain model."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Completions, TokenStats
from rlif_lightning.sampling import Sampling

GROUP = 3
NAMES = [field.name for field in fields(TokenStats)]
PLAIN = Sampling(max_new_tokens=12)
HOT = Sampling(temperature=1.7, max_new_tokens=12, min_new_tokens=4)


def completions_of(vocab_size: int) -> Completions:
    """Two prompts, longer and shorter than Gemma's window of 6, with ragged completions."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, vocab_size, (length,), generator=generator) for length in (9, 4)]
    ids = torch.randint(20, vocab_size, (2 * GROUP, 12), generator=generator)
    mask = torch.arange(12) < torch.tensor([12, 1, 7, 5, 2, 9]).unsqueeze(1)
    return Completions(prompts, ids.where(mask, 0), mask, GROUP)


def score(policy: PolicyModel, sampling: Sampling, budget: int = 30) -> TokenStats:
    """``[B, T]`` statistics of ``completions_of`` from packed micro-batches; with a graph."""
    packs = list(pack(completions_of(policy.vocab_size), budget))
    parts = [policy(packed, sampling) for packed in packs]
    order = torch.cat([packed.rows for packed in packs]).argsort()
    return TokenStats(
        *(torch.cat([getattr(part, name) for part in parts])[order] for name in NAMES)
    )


def score_plainly(policy: PolicyModel, sampling: Sampling) -> TokenStats:
    """The same, from the Hugging Face model's own logits of each sequence alone."""
    given, lines = completions_of(policy.vocab_size), []
    for row, keep in enumerate(given.mask):
        prompt, completion = given.prompt_ids[row // GROUP], given.completion_ids[row][keep]
        logits = policy.model(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0]
        logits = logits[len(prompt) - 1 : -1] / sampling.temperature
        possible = torch.ones_like(logits, dtype=torch.bool)
        possible[: sampling.min_new_tokens, policy.eos_ids] = False
        logp = logits.masked_fill(~possible, -torch.inf).log_softmax(-1)
        finite = logp.where(possible, 0.0)
        count = possible.sum(-1).to(logp.dtype)
        figures = (
            logp.gather(-1, completion.unsqueeze(-1)).squeeze(-1),
            -(finite.exp() * finite * possible).sum(-1),
            -finite.sum(-1) / count - count.log(),
        )
        lines.append(
            torch.stack(
                [torch.nn.functional.pad(f, (0, given.mask.shape[1] - len(f))) for f in figures], 1
            )
        )
    return TokenStats(*torch.stack(lines).unbind(2))


def gradients(policy: PolicyModel, stats: TokenStats) -> dict[str, Tensor]:
    """Gradient of a loss that weighs every token and every statistic differently."""
    policy.zero_grad()
    ramp = torch.linspace(-1, 1, stats.logprobs.numel()).view(stats.logprobs.shape)
    (
        stats.logprobs * ramp + stats.entropy * ramp.flip(0) + stats.self_certainty * ramp.flip(1)
    ).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same_gradients(
    left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float
) -> None:
    assert left.keys() == right.keys()
    assert left
    for name, value in left.items():
        scale = float(right[name].abs().max())
        assert float((value - right[name]).abs().max()) <= tolerance * max(scale, 1e-3), name
