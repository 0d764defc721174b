"""Observations to token ids that continue a row; what was decoded is never encoded again.

A row's ids after a turn are those before it, those that the policy drew, and those of a suffix:

    turn k     prompt  h e <|im_end|>
    suffix             [<|im_end|>] \\n <|im_start|> user \\n higher <|im_end|> \\n ...
    turn k + 1 prompt  h e <|im_end|> \\n <|im_start|> user \\n higher <|im_end|> \\n ... drawn ...

The suffix is what the chat template puts after an assistant's turn: the text of a conversation with
the observation, without the text of the same conversation up to the end of the assistant's words.
It is encoded apart from what the policy drew. The mark in brackets is left out where the policy
drew it itself.

With ``thoughts: fork`` the template renders the whole conversation after each turn (``Chat``).
While its text begins with what the context has shown, the context goes on by such a suffix.
Otherwise the whole text is the prompt of a new context:

    shown      ... <|im_start|> assistant \n  <think> t </think> 5
    rendered   ... <|im_start|> assistant \n  5 <|im_end|> \n <|im_start|> user \n higher ...
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from rlif_lightning.data.environment_settings import PLACE, EnvironmentSettings
from rlif_lightning.data.prompt_format import PromptRenderer, tools_of
from rlif_lightning.data.tokenizer import Encoder, encoded_apart, special_texts, without_tokens

Observation = str | list[dict[str, Any]]
# The conversation that the suffix is taken from.
WORDS = "I see."
ASKED = ({"role": "user", "content": "What now?"},)
ANSWERED = ({"role": "assistant", "content": WORDS},)


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
        seen, chat = text_of(self.plain(observation)), self.renderer.chat is not None

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

    def chat(
        self,
        row: dict[str, Any],
        text: str,
        messages: Sequence[dict[str, Any]] | None,
        tools: Sequence[dict[str, Any]],
    ) -> Chat | None:
        """Return what follows an episode's chat from its prompt on; None where ids are kept.

        Args:
            row, tools: as of :meth:`prompt`.
            text, messages: that it returned.
        """
        if self.settings.thoughts == "keep" or messages is None:
            return None
        return Chat(self, text, messages, tools_of({"tools": list(tools), **row}))

    def suffix(self, observation: Observation, last: int, ends: Sequence[int]) -> list[int]:
        """Return the ids between the policy's turn and its next one.

        Args:
            observation: of a step; "" = nothing.
            last: the id that the policy drew last.
            ends: ids that end a turn.
        """
        observation = self.plain(observation)
        if self.renderer.chat is None:
            return self.encode_apart(self.settings.template.replace(PLACE, text_of(observation)))
        return self.encoded_after(self._after_words(observation), last, ends)

    def encoded_after(self, text: str, last: int, ends: Sequence[int]) -> list[int]:
        """Return the ids of a template's text after a turn, as of :meth:`suffix`."""
        ids = self.encode_apart(text)
        return ids[1:] if ids and last in ends and ids[0] == last else ids

    def check(self, tools: Sequence[dict[str, Any]] = ()) -> None:
        """Refuse a chat template that cannot show what follows a turn; warn where there is none.

        The roles of what follows are tried: ``user``, and ``tool`` with tools.

        Raises:
            ValueError: names the setting and the remedy.
        """
        if self.renderer.chat is not None:
            for role in ("user", "tool") if tools else ("user",):
                said = {"role": role, "content": "Go on."}
                said |= {"name": tool_name(tools[0])} if role == "tool" else {}
                if self.settings.thoughts == "keep":
                    self._after_words([said], tools)
                else:
                    self.rendered([*ASKED, *ANSWERED, said], tools)
        elif self.settings.thoughts == "fork":
            raise ValueError(
                "data.environment.thoughts='fork' follows a chat template, and"
                " data.format.chat=false: set data.format.chat=true, or thoughts=keep"
            )
        elif tools:
            warnings.warn(
                f"data.environment.make={self.settings.make!r} has tools, and"
                " data.format.chat=false shows the policy none of them: set data.format.chat=true"
                " with a chat template, or name them in the prompts",
                stacklevel=2,
            )

    def plain(self, observation: Observation) -> Observation:
        """Return an observation that spells out no special token."""
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
        before = f"{self.rendered(ASKED, tools)}{WORDS}"
        after = self.rendered([*ASKED, *ANSWERED, *as_messages(observation)], tools)
        if not after.startswith(before):
            raise ValueError(
                "data.environment: the tokenizer's chat template does not keep what it has written:"
                f" with one more message {before[-80:]!r} becomes {after[: len(before)][-80:]!r},"
                " so that an episode's ids could not be continued; set"
                " data.environment.thoughts=fork, use another chat template, or"
                " data.format.chat=false"
            )
        return after[len(before) :]

    def rendered(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None
    ) -> str:
        """Return what the chat template writes, open for the assistant's next words.

        Raises:
            ValueError: it refuses the messages; names their roles.
        """
        assert self.renderer.chat is not None
        schemas: Any = list(tools or ()) or None
        try:
            return str(
                self.renderer.chat.apply_chat_template(
                    list(messages), tools=schemas, add_generation_prompt=True, tokenize=False
                )
            )
        except TemplateError as error:
            raise ValueError(
                "data.environment: the tokenizer's chat template refuses a conversation of the"
                f" roles {[message['role'] for message in messages]!s:.200}: {error}; use another"
                " chat template, or data.format.chat=false"
            ) from error


class Chat:
    """What the chat template has shown of one episode, under ``thoughts: fork``.

    Args:
        task: renders.
        text: of the first prompt.
        messages: that it was made of.
        tools: JSON schemas that it shows.
    """

    def __init__(
        self,
        task: EnvironmentTask,
        text: str,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
    ):
        self.task, self.text, self.messages, self.tools = task, text, list(messages), tools

    def follow(
        self, words: str, observation: Observation, last: int, ends: Sequence[int]
    ) -> Continuation:
        """Return what stands between a turn and the next one.

        White space around the words may go: no thought is lost with it.

        Args:
            words: text of the turn.
            observation, last, ends: as of ``EnvironmentTask.suffix``.
        """
        words = str(self.task.plain(words))
        self.messages.append({"role": "assistant", "content": words})
        self.messages += as_messages(self.task.plain(observation))
        shown, self.text = self.text, self.task.rendered(self.messages, self.tools)
        for kept in (f"{shown}{words}", f"{shown}{words.strip()}"):
            if self.text.startswith(kept):
                after = self.text[len(kept) :]
                return Continuation(self.task.encoded_after(after, last, ends))
        return Continuation(self.task.encode([self.text])[0].tolist(), is_new=True)


@dataclass(frozen=True)
class Continuation:
    """Ids between two turns of an episode.

    Attributes:
        ids: nobody draws them.
        is_new: whether they are the prompt of a new context.
    """

    ids: list[int]
    is_new: bool = False


def as_messages(observation: Observation) -> list[dict[str, Any]]:
    """Return an observation as messages; a text is the user's."""
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    return observation


def tool_name(schema: dict[str, Any]) -> str:
    """Return the name of a tool with this JSON schema."""
    return str(schema.get("function", schema).get("name", "tool"))


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
