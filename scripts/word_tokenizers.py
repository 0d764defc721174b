"""Tokenizers of the small models that the scripts here make: a token for each of a few words."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def word_tokenizer(words: Sequence[str], pattern: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of these words, which a pattern finds in a text, spaces among them."""
    core = word_level([*SPECIAL, *words])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return fast_tokenizer(core, SPECIAL)


def word_level(vocabulary: Sequence[str]) -> Tokenizer:
    """Return a tokenizer with a token for each word."""
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))


def fast_tokenizer(core: Tokenizer, special: Sequence[str]) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer; ``special`` are the padding, beginning, end and unknown token."""
    padding, begin, end, unknown = special
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=padding,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
