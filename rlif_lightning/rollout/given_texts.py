"""Rollouts whose completions are given texts, with the policy's statistics of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from rlif_lightning.data.tokenizer import encoded_apart
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import Completions, Prompts, Rollout
from rlif_lightning.sampling import Sampling


def text_rollout(
    policy: PolicyModel,
    prompts: Prompts,
    texts: Sequence[str],
    sampling: Sampling,
    max_tokens: int,
) -> Rollout:
    """Make a rollout of one given text for each prompt (a collective).

    A text is encoded on its own, without special tokens, and gets an end of sequence. One that is
    longer than ``sampling.max_new_tokens`` with it is cut, and has not ended.

    Args:
        policy: measures the texts, in passes without gradients.
        prompts: P prompts.
        texts: P of them.
        sampling: the limit of their length, and the temperature of the statistics.
        max_tokens: budget of one pass.
    """
    device, longest = prompts.token_ids[0].device, sampling.max_new_tokens
    encoded = encoded_apart(policy.tokenizer, list(texts))
    whole = [[*ids.tolist(), policy.stop_id] for ids in encoded]
    rows = [torch.tensor(ids[:longest], device=device) for ids in whole]
    completion_ids = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(completion_ids.shape[1], device=device) < lengths.unsqueeze(1)
    completions = Completions(prompts.token_ids, completion_ids, mask, group_size=1)
    stats = measure_tokens(policy, completions, sampling, max_tokens)
    ended = torch.tensor([len(ids) <= longest for ids in whole], device=device)
    read = [  # by rewards: what is left of a text that was cut
        text
        if len(ids) <= longest
        else policy.tokenizer.decode(ids[:longest], skip_special_tokens=True)
        for text, ids in zip(texts, whole, strict=True)
    ]
    return Rollout(prompts, completion_ids, mask, stats, read, ended, 1)
