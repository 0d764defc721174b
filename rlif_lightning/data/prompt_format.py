"""One problem to one text, and texts to token ids: template, few-shot examples, chat mark-up, special tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Encoder = Callable[[list[str]], list[np.ndarray]]
PROBE = "1"  # any text that a tokenizer can encode


@dataclass(frozen=True)
class PromptFormat:
    """How one problem becomes the text that a model reads. The arguments are those of `PromptData`.

    Example:
        >>> form = PromptFormat("question", "Q: {prompt} A:", examples=[{"question": "1+1?", "answer": " 2"}])
        >>> form.render({"question": "2+3?"})
        'Q: 1+1? A: 2\\n\\nQ: 2+3? A:'
    """

    prompt_column: str
    template: str = "{prompt}"
    chat: PreTrainedTokenizerBase | None = None
    system_prompt: str | None = None
    examples: tuple[dict[str, str], ...] | list[dict[str, str]] = ()

    def render(self, row: dict[str, Any]) -> str:
        """The prompt text of one data-set row, few-shot examples and chat mark-up included."""
        question = self._fill(row[self.prompt_column], row)
        shots = [(self._fill(example["question"], example), example["answer"]) for example in self.examples]
        if self.chat is None:
            return "".join(f"{text}{answer}\n\n" for text, answer in shots) + question
        turns = [] if self.system_prompt is None else [("system", self.system_prompt)]
        for text, answer in shots:
            turns += [("user", text), ("assistant", answer)]
        messages = [{"role": role, "content": text} for role, text in [*turns, ("user", question)]]
        return str(self.chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _fill(self, prompt: str, row: dict[str, Any]) -> str:
        return self.template.format(**{**row, "prompt": prompt})

    def check(self, columns: list[str], answer_column: str | None) -> None:
        """Check the template against the data set's columns.

        Raises:
            ValueError: the template names a field that doesn't exist, or the gold answer.
        """
        named = [name for _, name, _, _ in Formatter().parse(self.template) if name is not None]
        fields = {name.split(".")[0].split("[")[0] for name in named}
        if unknown := sorted(fields - {"prompt", *columns}):
            raise ValueError(
                f"template={self.template!r}: unknown field {unknown[0]!r}; fields are 'prompt' and the columns"
                f" {sorted(columns)}; write {{{{ and }}}} for braces that should be printed"
            )
        if answer_column in fields:
            raise ValueError(f"template={self.template!r} shows the gold answer {answer_column!r}; take it out")


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
