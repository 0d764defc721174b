"""What a reply means: a number, or nothing where it cannot be read.

Only the reply's own verdict line counts, or its JSON. A number or a word somewhere in the reply is
no verdict: judges count steps and quote what they read.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from rlif_lightning.data.described import Described

UNPARSED = ("nan", "zero", "drop")
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


class ReplyParser(Described, ABC):
    """Reads a score in a judge's reply.

    Args:
        unparsed: nan | zero | drop: what a completion gets whose reply cannot be read: no score,
            the score 0, or no place in the update at all.

    Attributes:
        key: the name of the verdict, in its line and in JSON.

    Raises:
        ValueError: an unknown name.
    """

    key = "verdict"

    def __init__(self, unparsed: str = "nan"):
        super().__init__()
        if unparsed not in UNPARSED:
            raise ValueError(f"unparsed={unparsed!r} is unknown; use one of {', '.join(UNPARSED)}")
        self.unparsed = unparsed

    def __call__(self, text: str) -> float | None:
        """Return the score of a reply, or None where it has none.

        A reply with several verdicts that differ has none.
        """
        whole = _FENCE.sub(r"\1", text.strip())
        if whole.startswith("{"):
            return self.of_json(_member(whole, self.key))
        scores = {self.of_word(word) for word in self._verdicts(text)}
        return scores.pop() if len(scores) == 1 else None

    def _verdicts(self, text: str) -> list[str]:
        line = rf"^[ \t*_#]*{self.key}[ \t*_]*[:=][ \t*_]*(\S[^\n]*?)[ \t*_.]*$"
        return re.findall(line, text, re.MULTILINE | re.IGNORECASE)

    @property
    def schema(self) -> Mapping[str, Any]:
        """Return the JSON schema of a reply: an analysis, then the verdict."""
        parts = {"analysis": {"type": "string"}, self.key: self.values}
        return {
            "type": "object",
            "properties": parts,
            "required": [*parts],
            "additionalProperties": False,
        }

    @property
    @abstractmethod
    def values(self) -> Mapping[str, Any]:
        """Return the JSON schema of the verdict."""

    @property
    @abstractmethod
    def form(self) -> str:
        """Return the sentence that asks for a verdict line, for templates."""

    @abstractmethod
    def of_word(self, word: str) -> float | None:
        """Return the score of what stands behind ``key:`` in a line; None = it is no verdict."""

    @abstractmethod
    def of_json(self, value: Any) -> float | None:
        """Return the score of the JSON value under ``key``; None = it is no verdict."""


class ScoreParser(ReplyParser):
    """Reads ``Score: N`` on a line of its own, or ``{"score": N}``; N is a whole number.

    The score is ``(N - lowest) / (highest - lowest)``, in [0, 1].

    Args:
        lowest: N of the worst completion.
        highest: N of the best.
        only_extremes: whether every N but these two counts as unreadable.
        unparsed: as for :class:`ReplyParser`.

    Raises:
        ValueError: no whole numbers with lowest < highest.

    Example:
        >>> parse = ScoreParser(1, 5)
        >>> parse("Step 2 of 5 is wrong.\\nScore: 4"), parse("4"), parse("Score: 4\\nScore: 5")
        (0.75, None, None)
    """

    key = "score"

    def __init__(
        self,
        lowest: int = 1,
        highest: int = 5,
        only_extremes: bool = False,
        unparsed: str = "nan",
    ):
        super().__init__(unparsed)
        if not (_is_whole(lowest) and _is_whole(highest) and lowest < highest):
            raise ValueError(
                f"lowest={lowest}, highest={highest}: need whole numbers, lowest first"
            )
        self.lowest, self.highest, self.only_extremes = lowest, highest, only_extremes

    @property
    def values(self) -> Mapping[str, Any]:
        if self.only_extremes:
            return {"type": "integer", "enum": [self.lowest, self.highest]}
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}

    @property
    def form(self) -> str:
        return (
            "End with a line of its own, 'Score: N', where N is a whole number from"
            f" {self.lowest} (worst) to {self.highest} (best)."
        )

    def of_word(self, word: str) -> float | None:
        found = re.fullmatch(rf"(-?\d{{1,9}})(?:\s*/\s*{self.highest})?", word, re.ASCII)
        return None if found is None else self.of_json(int(found[1]))

    def of_json(self, value: Any) -> float | None:
        if not _is_whole(value) or not self.lowest <= value <= self.highest:
            return None
        if self.only_extremes and value not in (self.lowest, self.highest):
            return None
        return (value - self.lowest) / (self.highest - self.lowest)


class VerdictParser(ReplyParser):
    """Reads ``Verdict: WORD`` on a line of its own, the word alone, or ``{"verdict": "WORD"}``.

    Args:
        verdicts: word -> score, whatever its case.
        unparsed: as for :class:`ReplyParser`.

    Raises:
        ValueError: fewer than two words, or a score that is not finite.

    Example:
        >>> parse = VerdictParser({"yes": 1, "no": 0})
        >>> parse("It says yes.\\nVerdict: no"), parse("Yes."), parse("yes and no")
        (0.0, 1.0, None)
    """

    def __init__(self, verdicts: dict[str, float] | None = None, unparsed: str = "nan"):
        super().__init__(unparsed)
        verdicts = {"yes": 1.0, "no": 0.0} if verdicts is None else verdicts
        self.verdicts = {word.strip().lower(): score for word, score in verdicts.items()}
        if len(self.verdicts) < 2 or not all(map(math.isfinite, self.verdicts.values())):
            raise ValueError(f"verdicts={verdicts} must give two words or more finite scores")

    def __call__(self, text: str) -> float | None:
        alone = self.of_word(text.strip().strip("*_.!\"' "))
        return super().__call__(text) if alone is None else alone

    @property
    def values(self) -> Mapping[str, Any]:
        return {"type": "string", "enum": [*self.verdicts]}

    @property
    def form(self) -> str:
        words = " or ".join(f"'{self.key.title()}: {word}'" for word in self.verdicts)
        return f"End with a line of its own, {words}."

    def of_word(self, word: str) -> float | None:
        score = self.verdicts.get(word.strip("\"'").lower())
        return None if score is None else float(score)

    def of_json(self, value: Any) -> float | None:
        return self.of_word(value) if isinstance(value, str) else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _member(text: str, key: str) -> Any:
    """Return a member of a JSON object; None where the text is none or it has another shape."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get(key) if isinstance(found, dict) else None
