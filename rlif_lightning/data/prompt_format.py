"""One problem to one text: messages, template, few-shot examples, chat mark-up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlif_lightning.data.columns import column_names, has_column
from rlif_lightning.records import overlap, value_at
from rlif_lightning.setting_types import check_types

ROLES = ("system", "user", "assistant")
TOOLS = "tools"  # a column with what the model may call, for the chat template


class _Fields(Formatter):
    """As ``str.format``, but ``{extra_info.index}`` is a nested column."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "[" in field_name:
            value, used = super().get_field(field_name, args, kwargs)
        else:
            value, used = value_at(kwargs, field_name), field_name
        if value is None:
            raise ValueError(f"{field_name!r} is empty (null)")
        return value, used


def _fields(template: str) -> Iterator[str]:
    """Yield the fields of a template, those inside of format specifications too."""
    for _, name, specification, _ in Formatter().parse(template):
        if name is not None:
            yield name
            yield from _fields(specification or "")


@dataclass(frozen=True)
class PromptFormat:
    """How one problem becomes the text that a model reads.

    Args:
        template: text around a problem (of messages: around the last one), as in ``str.format``:
            ``{prompt}`` is the problem, ``{name}`` another column.
        chat: put the prompt into the tokenizer's chat template, as the user's turn, open for the
            assistant's; a column `tools` (a list of JSON schemas, or its text) goes there too.
            Without it messages are joined by empty lines.
        system_prompt: the chat's system turn; without it, that of the messages, or the chat
            template's own (if any).
        examples: few-shot examples, each ``{question: ..., answer: ...}`` (and other columns that
            the template shows). In a chat they are turns. Otherwise each is the filled template,
            the answer and an empty line, before the prompt.

    Raises:
        ValueError: a template that shows nothing of a problem, a system prompt without a chat, or
            an example without question and answer.
    """

    template: str = "{prompt}"
    chat: bool = False
    system_prompt: str | None = None
    examples: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_types(self)
        try:
            shown = list(_fields(self.template))
        except ValueError as error:
            raise ValueError(
                f"format.template={self.template!r}: {error}; write {{{{ and }}}} for braces that"
                " should be printed"
            ) from error
        if not shown:
            raise ValueError(
                f"format.template={self.template!r} shows nothing of a problem, so that all prompts"
                " would be the same; put {prompt} where the problem goes"
            )
        if self.system_prompt is not None and not self.chat:
            raise ValueError(
                f"format.system_prompt={self.system_prompt!r} needs chat=true; or write it into the"
                " template"
            )
        for example in self.examples:
            if not {"question", "answer"} <= set(example):
                raise ValueError(
                    f"format.examples: {example} must have the keys 'question' and 'answer'"
                )

    def refuse_to_show(self, prompt_column: str, gold_column: str) -> None:
        """Refuse a prompt made of a column that holds gold answers.

        Raises:
            ValueError: the template, or the problem itself, shows the column.
        """
        for named in (name.replace("[", ".").replace("]", "") for name in _fields(self.template)):
            if named != "prompt" and overlap(named, gold_column):
                raise ValueError(
                    f"format.template={self.template!r} shows the gold answer {gold_column!r};"
                    " take it out"
                )
        if overlap(prompt_column, gold_column):
            raise ValueError(
                f"prompt_column={prompt_column!r} shows the gold answer {gold_column!r}; name"
                " another column"
            )


@dataclass(frozen=True)
class PromptRenderer:
    """What makes the texts: the format with the names and the tokenizer that it needs.

    A problem is a text, or messages ``{role, content}`` whose last one is the user's.

    Args:
        prompt_column: column with the problem, nested ones as a dotted path.
        form: how a problem becomes a text.
        chat: the tokenizer whose chat template is used; None without a chat.

    Example:
        >>> form = PromptFormat("Q: {prompt} A:", examples=[{"question": "1+1?", "answer": " 2"}])
        >>> renderer = PromptRenderer("question", form)
        >>> renderer.render({"question": "2+3?"})
        'Q: 1+1? A: 2\\n\\nQ: 2+3? A:'
        >>> system = {"role": "system", "content": "Be brief."}
        >>> renderer.render({"question": [system, {"role": "user", "content": "2+3?"}]})
        'Be brief.\\n\\nQ: 1+1? A: 2\\n\\nQ: 2+3? A:'
    """

    prompt_column: str
    form: PromptFormat = PromptFormat()
    chat: PreTrainedTokenizerBase | None = None

    def render(self, row: dict[str, Any], around: Callable[[str], str] | None = None) -> str:
        """Return the prompt text of one problem, few-shot examples and chat mark-up included.

        Args:
            row: the data-set row.
            around: what becomes of the problem in its template, such as one with feedback.
        """
        turns = self._turns(row, around)
        if self.chat is None:
            return "\n\n".join(turn["content"] for turn in turns)
        try:
            return str(
                self.chat.apply_chat_template(
                    turns,
                    tools=tools_of(row),  # pyright: ignore[reportArgumentType]
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        except (
            TemplateError
        ) as error:  # some know no system turn, some want the others to alternate
            roles = [turn["role"] for turn in turns]
            own = self.form.system_prompt is not None
            remedy = "take format.system_prompt out" if own else "change the messages"
            raise ValueError(
                "format.chat=true: the tokenizer's chat template refuses the turns"
                f" {roles!s:.200} of {turns[-1]['content']!r:.100}: {error}; {remedy}, or set"
                " chat=false"
            ) from error

    def messages(self, row: dict[str, Any]) -> list[dict[str, str]] | None:
        """Return the conversation that one problem's text is made of; None without a chat."""
        return None if self.chat is None else self._turns(row)

    def _turns(
        self, row: dict[str, Any], around: Callable[[str], str] | None = None
    ) -> list[dict[str, str]]:
        problem = value_at(row, self.prompt_column)
        given = (
            [("user", problem)]
            if isinstance(problem, str)
            else [(m["role"], m["content"]) for m in problem]
        )
        question = self._fill(given[-1][1], row)
        question = question if around is None else around(question)
        system, before = [], given[:-1]
        if before and before[0][0] == "system":
            system, before = before[:1], before[1:]
        shots = [
            (self._fill(example["question"], example), example["answer"])
            for example in self.form.examples
        ]
        if self.chat is None:  # a shot is one text
            joined = [("user", f"{text}{answer}") for text, answer in shots]
            return _messages([*system, *joined, *before, ("user", question)])
        turns = system if self.form.system_prompt is None else [("system", self.form.system_prompt)]
        for text, answer in shots:
            turns += [("user", text), ("assistant", answer)]
        return _messages([*turns, *before, ("user", question)])

    def _fill(self, prompt: str, row: dict[str, Any]) -> str:
        try:
            return _Fields().vformat(self.form.template, (), {**row, "prompt": prompt})
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"format.template={self.form.template!r} cannot be filled with {prompt!r:.100}:"
                f" {reason}; change the template, or correct the row or the example"
            ) from error

    def check_problem(self, row: dict[str, Any], where: str) -> None:
        """Check one problem.

        Args:
            row: the data-set row.
            where: the row in words, for messages.

        Raises:
            ValueError: neither a text nor messages that end with the user's; or a system turn
                beside system_prompt.
        """
        problem, named = (
            value_at(row, self.prompt_column),
            f"prompt_column={self.prompt_column!r}: {where}",
        )
        if self.chat is not None:
            tools_of(row, where)
        if isinstance(problem, str):
            return
        if not isinstance(problem, list) or not problem or not all(map(_is_message, problem)):
            raise ValueError(
                f"{named} is {problem!r:.200}, not a text or a list of messages {{role, content}},"
                f" each with a text and a role of {list(ROLES)}; correct the row, or name another"
                " column"
            )
        if problem[-1]["role"] != "user":
            raise ValueError(
                f"{named} ends with the turn of the {problem[-1]['role']},"
                f" {problem[-1]['content']!r:.100}: the last message must be the user's; take off"
                " what follows it (an answer there would be shown to the model)"
            )
        if self.form.system_prompt is not None and problem[0]["role"] == "system":
            raise ValueError(
                f"format.system_prompt={self.form.system_prompt!r:.100}, but {where} has a system"
                f" message of its own, {problem[0]['content']!r:.100}; take one of them out"
            )

    def check(self, features: Mapping[str, Any]) -> None:
        """Check the template against the data set's columns.

        Raises:
            ValueError: the template names a field that doesn't exist.
        """
        for named in (name.split("[")[0] for name in _fields(self.form.template)):
            if named != "prompt" and not has_column(features, named):
                raise ValueError(
                    f"format.template={self.form.template!r}: unknown field {named!r}; fields are"
                    f" 'prompt' and the columns {column_names(features)!s:.1000}; write {{{{ and"
                    " }} for braces that should be printed"
                )


def _messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def tools_of(row: Mapping[str, Any], where: str = "a row") -> list[dict[str, Any]] | None:
    """Return what the model may call in a chat: the column ``tools``, as TRL names it.

    Args:
        row: the data-set row; JSON schemas as a list, or as the text of one.
        where: the row in words, for messages.

    Raises:
        ValueError: something else is in the column.
    """
    given = row.get(TOOLS)
    if isinstance(given, str) and given.strip():
        with suppress(ValueError):  # refused below
            given = json.loads(given)
    if not given:
        return None
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ValueError(
            f"column {TOOLS!r}: {where} is {given!r:.200}, not a list of JSON schemas; correct the"
            " row, or rename a column that is for something else"
        )
    return [_without_empty(each) for each in given]


def _without_empty(value: Any) -> Any:
    """Return nested values without the keys that a table adds to make all rows alike."""
    if isinstance(value, dict):
        return {key: _without_empty(each) for key, each in value.items() if each is not None}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value


def _is_message(value: Any) -> bool:
    """Return whether a value is a message with one of the known roles and a text."""
    return (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )
