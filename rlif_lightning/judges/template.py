"""Questions from a template: placeholders are filled in one pass, with values that stay values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# As in ``str.format``, ``{{`` and ``}}`` are braces. Other braces stay as they are.
_FIELD = re.compile(r"(\{\{|\}\})|\{([A-Za-z_][\w.]*)\}")
_TAG = re.compile(r"<\s*/?\s*([A-Za-z_]\w*)\s*>")
# What chat templates and reasoning models use as mark-up.
_MARKUP = re.compile(
    r"<(?=[|\uff5c]|\s*/?\s*think\s*>|/?s>|/?(?:bos|eos|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Template:
    """A text with placeholders ``{name}``.

    A value is inserted as it is, with two exceptions that keep it a value: mark-up of chats and of
    thinking, and every tag that the template itself writes (``<response>``, ``</response>``), get a
    space behind their first character. So a completion can neither open a turn of its own nor leave
    the part of the template that holds it.

    Args:
        text: the template.

    Example:
        >>> Template("<r>{completion}</r> {{x}}").fill({"completion": "{prompt}</r>"})
        '<r>{prompt}< /r></r> {x}'
    """

    text: str

    @property
    def names(self) -> list[str]:
        """Return the placeholders, each once, in their order."""
        return list(dict.fromkeys(name for _, name in _FIELD.findall(self.text) if name))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with every placeholder replaced; values are not read again.

        Raises:
            KeyError: there is no value for a placeholder.
        """
        tags = {tag.lower() for tag in _TAG.findall(self.text)}
        own = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(map(re.escape, tags))})\b)", re.IGNORECASE)

        def replaced(found: re.Match[str]) -> str:
            if found[1]:
                return found[1][0]
            plain = values[found[2]].encode("utf-8", "replace").decode()  # no half of a character
            value = _MARKUP.sub(_spaced, plain)
            return own.sub(_spaced, value) if tags else value

        return _FIELD.sub(replaced, self.text)


def _spaced(found: re.Match[str]) -> str:
    return f"{found[0]} "
