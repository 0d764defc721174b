"""One problem to one text: messages, template, few-shot examples, chat mark-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlif_lightning.data.columns import column_names, has_column
from rlif_lightning.records import overlap, value_at

ROLES = ("system", "user", "assistant")


class _Fields(Formatter):
    """As ``str.format``, but ``{extra_info.index}`` is a nested column."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "[" in field_name:
            return super().get_field(field_name, args, kwargs)
        return value_at(kwargs, field_name), field_name


@dataclass(frozen=True)
class PromptFormat:
    """How one problem becomes the text that a model reads. The arguments are those of `PromptData`.

    A problem is a text, or messages ``{role, content}`` whose last one is the user's.

    Example:
        >>> form = PromptFormat("question", "Q: {prompt} A:", examples=[{"question": "1+1?", "answer": " 2"}])
        >>> form.render({"question": "2+3?"})
        'Q: 1+1? A: 2\\n\\nQ: 2+3? A:'
        >>> messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
        >>> form.render({"question": messages})
        'Be brief.\\n\\nQ: 1+1? A: 2\\n\\nQ: 2+3? A:'
    """

    prompt_column: str
    template: str = "{prompt}"
    chat: PreTrainedTokenizerBase | None = None
    system_prompt: str | None = None
    examples: tuple[dict[str, str], ...] | list[dict[str, str]] = ()

    def render(self, row: dict[str, Any]) -> str:
        """The prompt text of one data-set row, few-shot examples and chat mark-up included."""
        problem = value_at(row, self.prompt_column)
        given = (
            [("user", problem)]
            if isinstance(problem, str)
            else [(m["role"], m["content"]) for m in problem]
        )
        question = self._fill(given[-1][1], row)
        system, before = [], given[:-1]
        if before and before[0][0] == "system":
            system, before = before[:1], before[1:]
        shots = [
            (self._fill(example["question"], example), example["answer"])
            for example in self.examples
        ]
        if self.chat is None:
            parts = [text for _, text in system] + [f"{text}{answer}" for text, answer in shots]
            return "\n\n".join([*parts, *(text for _, text in before), question])
        turns = system if self.system_prompt is None else [("system", self.system_prompt)]
        for text, answer in shots:
            turns += [("user", text), ("assistant", answer)]
        messages = [
            {"role": role, "content": text} for role, text in [*turns, *before, ("user", question)]
        ]
        try:
            return str(
                self.chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )
        except (
            TemplateError
        ) as error:  # some know no system turn, some want the others to alternate
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"chat=true: the tokenizer's chat template refuses the turns {roles!s:.200} of"
                f" {question!r:.100}:"
                f" {error}; change the messages, or set chat=false"
            ) from error

    def _fill(self, prompt: str, row: dict[str, Any]) -> str:
        return _Fields().vformat(self.template, (), {**row, "prompt": prompt})

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
        if isinstance(problem, str):
            return
        if not isinstance(problem, list) or not problem or not all(map(_is_message, problem)):
            raise ValueError(
                f"{named} is {problem!r:.200}, not a text or a list of messages {{role, content}},"
                " each with a text"
                f" and a role of {list(ROLES)}"
            )
        if problem[-1]["role"] != "user":
            raise ValueError(
                f"{named} ends with the turn of the {problem[-1]['role']},"
                f" {problem[-1]['content']!r:.100}: the last"
                " message must be the user's; take off what follows it (an answer there would be"
                " shown to the model)"
            )
        if self.system_prompt is not None and problem[0]["role"] == "system":
            raise ValueError(
                f"system_prompt={self.system_prompt!r:.100}, but {where} has a system message of"
                " its own,"
                f" {problem[0]['content']!r:.100}; take one of them out"
            )

    def check(self, features: Mapping[str, Any]) -> None:
        """Check the template against the data set's columns.

        Raises:
            ValueError: the template names a field that doesn't exist.
        """
        for field in (name.split("[")[0] for name in _fields(self.template)):
            if field != "prompt" and not has_column(features, field):
                raise ValueError(
                    f"template={self.template!r}: unknown field {field!r}; fields are 'prompt' and"
                    " the columns"
                    f" {column_names(features)!s:.1000}; write {{{{ and }}}} for braces that"
                    " should be printed"
                )

    def refuse_to_show(self, gold_column: str) -> None:
        """Refuse a prompt made of a column that holds gold answers.

        Raises:
            ValueError: the template, or the problem itself, shows the column.
        """
        for field in (name.replace("[", ".").replace("]", "") for name in _fields(self.template)):
            if field != "prompt" and overlap(field, gold_column):
                raise ValueError(
                    f"template={self.template!r} shows the gold answer {gold_column!r}; take it out"
                )
        if overlap(self.prompt_column, gold_column):
            raise ValueError(
                f"prompt_column={self.prompt_column!r} shows the gold answer {gold_column!r}"
            )


def _is_message(value: Any) -> bool:
    """Whether a value is a message with one of the known roles and a text."""
    return (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )


def _fields(template: str) -> Iterator[str]:
    """The fields of a template, those inside of format specifications too."""
    for _, name, specification, _ in Formatter().parse(template):
        if name is not None:
            yield name
            yield from _fields(specification or "")
