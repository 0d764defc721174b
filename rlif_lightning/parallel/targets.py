"""Teacher-forced log-probs of given texts: what a policy would give them, after other tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.records import Completions
from rlif_lightning.sampling import Sampling

MAX_TOKENS = 8192  # of one pass without gradients
OWN = Sampling(temperature=1.0)  # the model's own distribution


def measure_targets(
    policy: PolicyModel,
    prompts: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    targets: Sequence[Tensor],
    max_tokens: int = MAX_TOKENS,
) -> list[Tensor]:
    """Compute the log-probs of targets, each after its prompt and its prefix (a collective).

    Packed passes without gradients, at temperature 1. A prompt that several prefixes follow is
    computed once. Neither ``max_tokens`` nor what else is measured changes a log-prob beyond
    rounding.

    Args:
        policy: the model.
        prompts: P tensors of token ids ``[L]``, L >= 1.
        prefixes: B = P * G of them, prompt-major; they may be empty.
        targets: B, likewise.
        max_tokens: budget of one pass.

    Returns:
        B tensors, nats, one number for each token of the target.

    Raises:
        ValueError: the numbers do not fit, or prompt, prefix and target together are longer than
            the model computes correctly.
    """
    if not prompts or len(prefixes) != len(targets) or len(prefixes) % len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(prefixes)} prefixes and {len(targets)} targets: every"
            " prompt needs as many prefixes as another, and every prefix a target"
        )
    device, size = prompts[0].device, len(prefixes) // len(prompts)
    lengths = [len(ids) for ids in prompts for _ in range(size)]
    pairs = zip(lengths, prefixes, targets, strict=True)
    longest = [length + len(prefix) + len(target) for length, prefix, target in pairs]
    # A process that raised alone would leave the others in their passes.
    all_process_attempt(
        lambda: policy.limits.check(policy.name, lengths, longest, " with a target")
    )
    rows = [
        torch.cat([prefix, target]).to(device)
        for prefix, target in zip(prefixes, targets, strict=True)
    ]
    ids = pad_sequence(rows, batch_first=True)  # [B, T]
    sizes = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(ids.shape[1], device=device) < sizes.unsqueeze(1)
    stats = measure_tokens(policy, Completions(prompts, ids, mask, size), OWN, max_tokens)
    return [
        logprobs[len(prefix) : len(row)]
        for logprobs, prefix, row in zip(stats.logprobs, prefixes, rows, strict=True)
    ]
