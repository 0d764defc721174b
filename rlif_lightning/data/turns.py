"""Observations to token ids that continue a row; what was decoded is never encoded again.

A row's ids after a turn are those before it, those that the policy drew, and those of a suffix:

    turn k     prompt  h e <|im_end|>
    suffix             [<|im_end|>] \\n <|im_start|> user \\n higher <|im_end|> \\n ...
    turn k + 1 prompt  h e <|im_end|> \\n <|im_start|> user \\n higher <|im_end|> \\n ... drawn ...

The suffix is what the chat template puts after an assistant's turn: the text of a conversation with
the observation, without the text of the same conversation up to the end of the assistant's words.
It is encoded apart from what the policy drew. The mark in brackets is left out where the policy
drew it itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.data.environment_settings import PLACE, EnvironmentSettings
from rlif_lightning.data.prompt_format import PromptRenderer
from rlif_lightning.data.tokenizer import Encoder, encoded_apart, special_texts, without_tokens

Observation = str | list[dict[str, Any]]
QUESTION, WORDS = "What now?", "I see."  # of the conversation that the suffix is taken from


@dataclass(frozen=True)
class EnvironmentTask:
    """What turns the problems of ``Prompts`` into episodes.

    Args:
        settings: the environment and the limits of an episode.
        renderer: makes a problem's text.
        encode: makes token ids of prompts.
        encode_apart: makes token ids of a text that continues another one: without special tokens.
        special: texts that the tokenizer would read as special tokens. An observation that spells
            one out gets a space behind its first character, so that it opens no turn of its own.
    """

    settings: EnvironmentSettings
    renderer: PromptRenderer
    encode: Encoder
    encode_apart: Callable[[str], list[int]]
    special: Collection[str] = ()

    def prompt(
        self, row: dict[str, Any], observation: Observation, tools: Sequence[dict[str, Any]]
    ) -> tuple[str, Tensor, list[dict[str, str]] | None]:
        """Return the text, ids ``[L]`` and messages of a problem with its first observation.

        Args:
            row: the data-set row.
            observation: of ``reset``; it ends the user's message, or the text without a chat.
            tools: JSON schemas for the chat template, unless the row names its own.
        """
        row = {"tools": list(tools), **row} if tools else row
        seen, chat = text_of(self._plain(observation)), self.renderer.chat is not None

        def with_observation(question: str) -> str:
            return f"{question}\n\n{seen}" if seen and chat else question

        text = self.renderer.render(row, with_observation)
        if seen and not chat:
            text += self.settings.template.replace(PLACE, seen)
        messages = self.renderer.messages(row)
        if messages is not None:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": with_observation(last["content"])}]
        return text, torch.from_numpy(self.encode([text])[0].astype(np.int64)), messages

    def suffix(self, observation: Observation, last: int, ends: Sequence[int]) -> list[int]:
        """Return the ids between the policy's turn and its next one.

        Args:
            observation: of a step; "" = nothing.
            last: the id that the policy drew last.
            ends: ids that end a turn.
        """
        observation = self._plain(observation)
        if self.renderer.chat is None:
            return self.encode_apart(self.settings.template.replace(PLACE, text_of(observation)))
        ids = self.encode_apart(self._after_words(observation))
        return ids[1:] if ids and last in ends and ids[0] == last else ids

    def check(self, tools: Sequence[dict[str, Any]] = ()) -> None:
        """Refuse a chat template that changes what it has written before; warn where there is none.

        Raises:
            ValueError: names the setting and the remedy.
        """
        if self.renderer.chat is not None:
            self._after_words("Go on.", tools)
        elif tools:
            warnings.warn(
                f"data.environment.make={self.settings.make!r} has tools, and"
                " data.format.chat=false shows the policy none of them: set data.format.chat=true"
                " with a chat template, or name them in the prompts",
                stacklevel=2,
            )

    def _plain(self, observation: Observation) -> Observation:
        if isinstance(observation, str):
            return without_tokens(observation, self.special)
        return [
            {
                name: without_tokens(value, self.special) if isinstance(value, str) else value
                for name, value in message.items()
            }
            for message in observation
        ]

    def _after_words(self, observation: Observation, tools: Sequence[dict[str, Any]] = ()) -> str:
        """Return what the template writes between an assistant's words and its next ones."""
        asked = [{"role": "user", "content": QUESTION}]
        told = observation
        if isinstance(told, str):
            told = [{"role": "user", "content": told}]
        before = f"{self._rendered(asked, tools)}{WORDS}"
        after = self._rendered([*asked, {"role": "assistant", "content": WORDS}, *told], tools)
        if not after.startswith(before):
            raise ValueError(
                "data.environment: the tokenizer's chat template does not keep what it has written:"
                f" with one more message {before[-80:]!r} becomes {after[: len(before)][-80:]!r},"
                " so that an episode's ids could not be continued; use another chat template, or"
                " data.format.chat=false"
            )
        return after[len(before) :]

    def _rendered(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        assert self.renderer.chat is not None
        schemas: Any = list(tools) or None
        return str(
            self.renderer.chat.apply_chat_template(
                messages, tools=schemas, add_generation_prompt=True, tokenize=False
            )
        )


def text_of(observation: Observation | None) -> str:
    """Return an observation's text; messages are paragraphs."""
    if isinstance(observation, str) or observation is None:
        return observation or ""
    return "\n\n".join(str(message["content"]) for message in observation)


def environment_task(
    settings: EnvironmentSettings | None, renderer: PromptRenderer, encode: Encoder, tokenizer: Any
) -> EnvironmentTask | None:
    """Return what turns problems into episodes; None without an environment.

    Raises:
        ValueError: the chat template cannot be continued; names the setting.
    """
    if settings is None:
        return None

    def apart(text: str) -> list[int]:
        return encoded_apart(tokenizer, [text])[0].tolist()

    task = EnvironmentTask(settings, renderer, encode, apart, special_texts(tokenizer))
    task.check()
    return task
