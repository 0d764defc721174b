"""A pairwise judge's reply: merits and penalties of two texts, and what they make (Turing-RL).

The judge only says how far each quality holds. All arithmetic is here, so that a judge that adds up
wrongly, or names a rating of its own, changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MERITS: tuple[str, ...] = ("immediate_target", "human_goal", "communication_style")
PENALTIES: tuple[str, ...] = (
    "source_copy",
    "wrong_target_or_role",
    "adversarial_reframing",
    "assistant_like",
)
SIDES = ("reply_a", "reply_b")
EDGES = (0.25, 1.0, 2.0)  # of the gap, in score
EVEN = 4  # the rating of equal replies
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True)
class PairScores:
    """The scores of two replies, each in [0, 3].

    Attributes:
        a: of reply A.
        b: of reply B.

    Example:
        >>> PairScores(1.0, 1.5).rating, PairScores(1.5, 1.0).rating, PairScores(0.0, 3.0).rating
        (5, 3, 7)
    """

    a: float
    b: float

    @property
    def rating(self) -> int:
        """Return from 1, A by far, over 4, even, to 7, B by far."""
        # The judge's numbers have few decimals; their sums may miss an edge by rounding alone.
        gap = round(self.b - self.a, 6)
        steps = sum(abs(gap) >= edge for edge in EDGES)
        return EVEN + (steps if gap > 0 else -steps)


def reply_score(values: Mapping[str, float]) -> float:
    """Return the sum of the merits less three times the mean penalty, at least 0.

    Example:
        >>> reply_score(dict.fromkeys(MERITS, 1.0) | dict.fromkeys(PENALTIES, 0.5))
        1.5
    """
    merits = sum(values[name] for name in MERITS)
    penalty = len(MERITS) * sum(values[name] for name in PENALTIES) / len(PENALTIES)
    return max(0.0, merits - penalty)


def pair_scores(text: str) -> PairScores | None:
    """Return the scores that a judge's JSON makes; None where it cannot be read.

    The reply is the JSON alone, or has it in its one fenced block. Every merit and penalty of both
    replies must be there, a number in [0, 1].
    """
    fenced = _FENCE.findall(text)
    try:
        found = json.loads(fenced[0] if len(fenced) == 1 else text)
    except (ValueError, RecursionError):
        return None
    sides = [_qualities(found, side) for side in SIDES]
    if sides[0] is None or sides[1] is None:
        return None
    return PairScores(reply_score(sides[0]), reply_score(sides[1]))


def _qualities(found: Any, side: str) -> Mapping[str, float] | None:
    values = found.get(side) if isinstance(found, dict) else None
    if not isinstance(values, dict):
        return None
    known: dict[str, Any] = {name: values.get(name) for name in (*MERITS, *PENALTIES)}
    return known if all(map(_is_share, known.values())) else None


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def pair_schema() -> dict[str, Any]:
    """Return the JSON schema of a reply: an analysis, then the qualities of both replies."""
    share = {"type": "number", "minimum": 0, "maximum": 1}
    side = _object({name: share for name in (*MERITS, *PENALTIES)})
    return _object({"analysis": {"type": "string"}, **dict.fromkeys(SIDES, side)})


def _object(parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": parts,
        "required": [*parts],
        "additionalProperties": False,
    }


def pair_form() -> str:
    """Return the sentence that asks for the JSON, for templates."""
    names = ", ".join(f'"{name}"' for name in (*MERITS, *PENALTIES))
    return (
        'Answer with one JSON object and nothing else: {"analysis": "...", "reply_a": {...},'
        f' "reply_b": {{...}}}}, where both hold a number from 0 to 1 under each of {names}.'
    )
