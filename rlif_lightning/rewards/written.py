"""How a user simulator's completion is written: reasoning, reply, length, copied passages."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKER = "[HUMAN]:"
FORMAT_BONUS = 0.05  # for one block of reasoning, and for one marker with a reply behind it
COPIED_WORDS = 5  # a shorter run of the source's words is no copy
SHOWN_COPIES = 3
_WORD = re.compile(r"\b[\w']+\b")
_LETTERS = re.compile(r"[^\W\d_]")
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Written:
    """A completion's parts.

    Attributes:
        reasoning: the text before the last marker.
        reply: the text behind it; the whole completion where reasoning is not asked for.
        bonus: for its format, 0 to 0.1.
        is_valid: whether it can earn anything.

    Example:
        >>> Written.of("<reasoning>Hm.</reasoning>\\n[HUMAN]: quick")
        Written(reasoning='<reasoning>Hm.</reasoning>', reply='quick', bonus=0.1, is_valid=True)
    """

    reasoning: str
    reply: str
    bonus: float
    is_valid: bool

    @classmethod
    def of(cls, text: str, reasons: bool = True) -> Written:
        """Return the parts of a completion.

        Args:
            text: the completion.
            reasons: whether reasoning and the marker are asked for.
        """
        if not reasons:
            reply = text.strip()
            return cls("", reply, 0.0, bool(reply))
        before, marker, reply = (part.strip() for part in text.rpartition(MARKER))
        tags = [before.count(tag) for tag in ("<reasoning>", "</reasoning>")]
        block = re.fullmatch(r"<reasoning>(.*)</reasoning>", before, re.DOTALL)
        has_letters = bool(marker and _LETTERS.search(_TAG.sub(" ", before)))
        is_one_block = tags == [1, 1] and block is not None and bool(_LETTERS.search(block[1]))
        is_clean = text.count(MARKER) == 1 and "<reasoning" not in reply and "<think" not in reply
        bonus = FORMAT_BONUS * (is_one_block + is_clean) if reply else 0.0
        return cls(before, reply, bonus, has_letters and bool(reply))


def num_words(text: str) -> int:
    """Return how many words a text has."""
    return len(_WORD.findall(text))


def length_penalty(reply: str, human: str, most: float = 0.25) -> float:
    """Return what a reply loses that is much shorter or longer than the human's.

    ``min(.35 max(.8 - r, 0) / .8 + .15 max(r - 1.1, 0) / 1.1, most)`` with the ratio r of words.
    """
    ratio = num_words(reply) / max(num_words(human), 1)
    short, long = max(0.8 - ratio, 0.0) / 0.8, max(ratio - 1.1, 0.0) / 1.1
    return min(0.35 * short + 0.15 * long, most)


def copied_runs(reply: str, source: str) -> list[str]:
    """Return the runs of five words or more that a reply shares with its source, longest first.

    Case and punctuation do not count. Runs do not overlap in the reply.

    Example:
        >>> copied_runs("ok: Which size do you want, then?", "So which size do you want today?")
        ['Which size do you want']
    """
    words, known = list(_WORD.finditer(reply)), [w.casefold() for w in _WORD.findall(source)]
    own = [word[0].casefold() for word in words]
    ends = _shared_ends(own, known)
    runs, place = [], 0
    while place < len(own):
        if (size := ends[place] - place) >= COPIED_WORDS:
            runs.append((size, reply[words[place].start() : words[place + size - 1].end()]))
        place += size if size >= COPIED_WORDS else 1
    return [run for _, run in sorted(runs, key=lambda each: -each[0])]


def _shared_ends(own: list[str], known: list[str]) -> list[int]:
    """Return for each place where the longest run that begins there and the source has too ends."""
    starts: dict[tuple[str, ...], list[int]] = {}
    for place in range(len(known) - COPIED_WORDS + 1):
        starts.setdefault(tuple(known[place : place + COPIED_WORDS]), []).append(place)
    ends = []
    for place in range(len(own)):
        longest = 0
        for start in starts.get(tuple(own[place : place + COPIED_WORDS]), ()):
            size = COPIED_WORDS
            while own[place + size : place + size + 1] == known[
                start + size : start + size + 1
            ] and (place + size < len(own)):
                size += 1
            longest = max(longest, size)
        ends.append(place + longest)
    return ends


def watch_list(copied_a: list[str], copied_b: list[str]) -> str:
    """Return what a judge reads about copied passages; whether they matter is for it to say."""
    lines = [
        f'Reply {name} has, word for word: "{run}"'
        for name, runs in (("A", copied_a), ("B", copied_b))
        for run in runs[:SHOWN_COPIES]
    ]
    return "\n".join(lines) or f"No run of {COPIED_WORDS} words or more is copied."
