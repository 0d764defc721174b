"""Token ids of texts by the policy's tokenizer, and the special tokens of a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Encoder = Callable[[list[str]], list[np.ndarray]]
EMBEDDED_MODELS = {"rlif-arithmetic": Path(__file__).parent.parent / "assets" / "base_model"}
if TYPE_CHECKING:
    TokenizerLike = str | PreTrainedTokenizerBase
else:  # the command line knows names alone
    TokenizerLike = str
PROBE = "1"  # any text that a tokenizer can encode
MAX_CHARACTERS = 2**20  # of a prompt


def resolve_model(name: str) -> str:
    """Return the folder of an embedded model, or the name itself (a hub name or folder).

    A ``~`` at its beginning is the home folder: a YAML file has no shell.
    """
    return str(EMBEDDED_MODELS.get(name, os.path.expanduser(name)))


def load_tokenizer(
    name: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, hub name or embedded model.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(
            resolve_model(name), revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a broken file makes the library raise anything
        if trust_remote_code and not isinstance(error, (OSError, ValueError)):
            raise
        raise ValueError(
            f"tokenizer={name!r}: no tokenizer can be loaded from this folder or hub name (current"
            f" folder: {Path.cwd()}): {' '.join(str(error).split()) or type(error).__name__:.400}"
        ) from error


def find_tokenizer(
    given: TokenizerLike | None, revision: str | None, trust_remote_code: bool, module: Any
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was given as an object or by name, or that of a module's policy.

    Raises:
        ValueError: there is none.
    """
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    if given is not None:
        return load_tokenizer(given, revision, trust_remote_code)
    policy = getattr(module, "policy_settings", None)
    if policy is None:
        raise ValueError(
            "tokenizer is not set, and no policy names one: pass tokenizer, or use PromptData with"
            " RLIFModule"
        )
    return load_tokenizer(policy.name, policy.revision, policy.trust_remote_code)


def special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the special tokens of a tokenizer as texts, which it would read as tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def without_tokens(text: str, tokens: Iterable[str]) -> str:
    """Return a text in which a tokenizer finds none of its special tokens.

    Args:
        text: any; half of a character becomes a question mark.
        tokens: the special tokens as texts.
    """
    text = text.encode("utf-8", "replace").decode()
    for token in sorted(tokens):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def encoded_apart(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    """Return token ids ``[L]``, int32, of texts that continue others: without special tokens."""
    ids = _encoded(tokenizer, texts, add_special_tokens=False)
    return [np.array(each, dtype=np.int32) for each in ids]


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, chat: bool) -> Encoder:
    """Return a function from prompts to token ids, int32 arrays ``[L]``.

    Special tokens that the tokenizer prepends (beginning of sequence) stay. Those that it appends
    are left out, with one line in the log: a completion continues the prompt, and nothing continues
    an end of sequence. A chat template writes its special tokens itself.

    Raises:
        ValueError: the tokenizer has no chat template, and ``chat`` needs one.
    """
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            f"format.chat=true, but the tokenizer {tokenizer.name_or_path!r} has no chat template;"
            " set chat=false, or use an instruction-tuned model"
        )
    appended = 0 if chat else _appended_tokens(tokenizer)
    if appended:
        added = tokenizer.convert_ids_to_tokens(tokenizer(PROBE)["input_ids"][-appended:])
        rank_zero_info(
            f"the tokenizer {tokenizer.name_or_path!r} appends {added} to texts; left out of"
            " prompts"
        )

    def encode(texts: list[str]) -> list[np.ndarray]:
        encoded = _encoded(tokenizer, texts, add_special_tokens=not chat)
        return [np.array(ids[: len(ids) - appended], dtype=np.int32) for ids in encoded]

    return encode


def without_overlong(
    texts: list[str], first: int, split: str, limit: int | None
) -> tuple[list[str], dict[int, int]]:
    """Replace texts that are too long for any model, before the tokenizer reads them.

    The tokenizer needs 300 bytes for each of their tokens.

    Args:
        texts: prompts of a split, one for each row.
        first: the row of the first one.
        split: name of the split.
        limit: tokens beyond which prompts are left out; None = none is left out.

    Returns:
        The texts, overlong ones empty; and row -> a length beyond the limit for each of these.

    Raises:
        ValueError: a text is overlong and ``limit`` is None; names the row.
    """
    overlong = {
        row: len(text) for row, text in enumerate(texts, first) if len(text) > MAX_CHARACTERS
    }
    if overlong and limit is None:
        row, length = next(iter(overlong.items()))
        raise ValueError(
            f"row {row} of the {split} split makes a prompt of {length} characters (at most"
            f" {MAX_CHARACTERS}); shorten it, or set max_prompt_tokens and overlong=filter to leave"
            " such rows out"
        )
    kept = ["" if row in overlong else text for row, text in enumerate(texts, first)]
    return kept, {row: max(length, (limit or 0) + 1) for row, length in overlong.items()}


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool
) -> list[list[int]]:
    """Return the token ids of texts.

    A tokenizer's own regular expressions may fail on a text, with a panic of its library.
    """
    try:
        return tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]  # pyright: ignore[reportReturnType]
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        if len(texts) > 1:
            return [
                ids for text in texts for ids in _encoded(tokenizer, [text], add_special_tokens)
            ]
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} cannot encode the text {texts[0][:60]!r}:"
            f" {error!s:.200}; leave it out of the data"
        ) from error


def _appended_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens the tokenizer appends to a text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    starts = [
        start for start in range(len(whole)) if bare and whole[start : start + len(bare)] == bare
    ]
    return len(whole) - starts[0] - len(bare) if starts else 0
