"""Texts to token ids: the policy's tokenizer, and which of its special tokens stand in a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Encoder = Callable[[list[str]], list[np.ndarray]]
PROBE = "1"  # any text that a tokenizer can encode


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer={name!r}: no tokenizer can be loaded from this folder or hub name (current folder:"
            f" {Path.cwd()}): {error}"
        ) from error


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, chat: bool) -> Encoder:
    """What makes token ids of prompts: int32 arrays ``[L]``.

    Special tokens that the tokenizer puts in front (beginning of sequence) stay. Those that it puts behind are left
    out, with one line in the log: a completion goes on from the prompt, and nothing goes on after an end of sequence.
    A chat template writes its special tokens itself.
    """
    behind = 0 if chat else _tokens_behind(tokenizer)
    if behind:
        added = tokenizer.convert_ids_to_tokens(tokenizer(PROBE)["input_ids"][-behind:])
        rank_zero_info(f"the tokenizer {tokenizer.name_or_path!r} appends {added} to texts; left out of prompts")

    def encode(texts: list[str]) -> list[np.ndarray]:
        encoded = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
        return [np.array(ids[: len(ids) - behind], dtype=np.int32) for ids in encoded]

    return encode


def _tokens_behind(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer appends to a text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    starts = [start for start in range(len(whole)) if bare and whole[start : start + len(bare)] == bare]
    return len(whole) - starts[0] - len(bare) if starts else 0
