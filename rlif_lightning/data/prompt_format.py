"""One problem to one text: template, few-shot examples, chat mark-up."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any

from transformers import PreTrainedTokenizerBase


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
