r"""Find the final answer in a completion's text: ``AnswerExtractor`` and its kinds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import regex

from rlif_lightning.answers.spelling import normalise
from rlif_lightning.setting_types import check_types

Span = tuple[int, int]  # first character, and the one after the last
# CPU seconds that a user's pattern may take on one text.
PATTERN_SECONDS = 0.2

# Between thousands: a comma, TeX's forms of it, TeX's thin space, and spaces that break no line.
_COMMA = r"(?:,(?:\\!)?|\{,\}|\\,|[\u00a0\u2009\u202f])"
# A space parts thousands where a number could not begin: "1 000", "12 045 300", not "100 200".
_SPACED = r"[1-9][0-9]{0,2}(?: [0-9]{3})*? 0[0-9]{2}(?: [0-9]{3})*(?![0-9])"
_NUMBER = (
    rf"(?:{_SPACED}|[0-9]{{1,3}}(?:{_COMMA}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
)
_POWER = (
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z])"
    r"|\s?(?:x|\*|\\times|\\cdot|\u00d7)\s?10\^(?:\{-?[0-9]+\}|-?[0-9]+))?"
)
_MIXED = r"[0-9]{1,4} [0-9]{1,4}/[0-9]{1,4}(?![0-9])|[0-9]{1,4}\\[dt]?frac\{[0-9]+\}\{[0-9]+\}"
# "5-3" ends in 3, not in -3; "-$3" is a number below 0.
_SIGN = r"(?:(?<![\w.)\]}])[-+\u2212](?:\\?\$)?)?"
_LAST_NUMBER = re.compile(
    rf"((?<![0-9.]){_SIGN}(?:{_MIXED}|\\[dt]?frac\{{-?[0-9]+\}}\{{-?[0-9]+\}}"
    rf"|(?:{_NUMBER}){_POWER}(?:/[0-9]+)?)(?:\\?%)?)"
)
_HASH = re.compile(r"####[ \t]*([^\n]+)")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_PHRASE = re.compile(
    r"\banswer\s*(?:is\b|:|=)[\s:*]*([^\n]+?)(?=\.(?:\s|\*|$)|\n|$)", re.IGNORECASE
)
# What follows the answer in its sentence: a reason, or a consequence behind a comma.
_REASON = re.compile(
    r"[,;]?\s+\(?(?:because|since)\b"
    r"|[,;]\s*(?:as|so|which|where|for|given|but|not|thus|hence|therefore|we)\b"
    r"|[,;]\s*and (?:so|thus|hence|therefore|we|the)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(([A-J])\)(?=[\s:.]+(?!(?:and|or)\b)[^\s,])")
_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def _trimmed(text: str, span: Span, characters: str | None = None) -> Span:
    """Return a span without these characters, by default white space, at both ends."""
    part = text[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip(characters))
    return start, max(start, span[0] + len(part.rstrip(characters)))


def _last_match(pattern: re.Pattern[str], text: str) -> Span | None:
    found = [match.span(1) for match in pattern.finditer(text) if match[1]]
    return _trimmed(text, found[-1]) if found else None


def _last_phrase(text: str) -> Span | None:
    """Find what a text calls the answer, without its reason; of a choice, the letter."""
    found = _last_match(_PHRASE, text)
    if found is None:
        return None
    start, end = _trimmed(text, found, "*")
    if reason := _REASON.search(text[start:end]):
        end = start + reason.start()
    letter = _LETTER.match(text[start:end])
    return start, start + len(letter[0]) if letter else end


def _last_boxed(text: str) -> Span | None:
    r"""Find the content of the last non-empty, closed ``\boxed{...}`` or ``\fbox{...}``.

    One pass, so linear in the text.
    """
    best, opened = (-1, (0, 0)), []
    for token in _BOX_TOKENS.finditer(text):
        if token[0][-1] == "{" and token[0] != r"\{":
            opened.append((token.end(), len(token[0]) > 1))
        elif token[0] == "}" and opened:
            start, is_box = opened.pop()
            content = _trimmed(text, (start, token.start()))
            if is_box and content[0] < content[1]:
                best = max(best, (start, content))
    return best[1] if best[0] >= 0 else None


def _last_by_pattern(pattern: str, text: str) -> Span | None:
    try:
        found = [
            match.span(1)
            for match in regex.finditer(pattern, text, timeout=PATTERN_SECONDS)
            if match[1]
        ]
    except TimeoutError:
        _warn_once(pattern)
        return None
    return found[-1] if found else None


def has_box(text: str) -> bool:
    r"""Return whether a text holds an answer in a closed ``\boxed{...}`` or ``\fbox{...}``."""
    span = _last_boxed(text)
    return span is not None and normalise(text[slice(*span)]) != ""


def compiled(pattern: str, flags: int = 0) -> regex.Pattern[str]:
    """Return a user's pattern compiled.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        return regex.compile(pattern, flags)
    except regex.error as error:
        raise ValueError(f"pattern={pattern!r} is not a regular expression: {error}") from error


def pattern_found(pattern: str, text: str) -> bool:
    """Return whether a user's pattern is somewhere in a text (``.`` matches newlines).

    A search that exceeds its time counts as no match.
    """
    try:
        return regex.search(pattern, text, regex.DOTALL, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        _warn_once(pattern)
        return False


def matches_of(pattern: str, text: str) -> list[str]:
    """Return all that a user's pattern finds in a text (``.`` matches newlines).

    A search that exceeds its time finds nothing.
    """
    try:
        found = regex.finditer(pattern, text, regex.DOTALL, timeout=PATTERN_SECONDS)
        return [match[0] for match in found]
    except TimeoutError:
        _warn_once(pattern)
        return []


@lru_cache
def _warn_once(pattern: str) -> None:
    warnings.warn(
        f"pattern={pattern!r} took over {PATTERN_SECONDS} s of CPU time on a text, which counts as"
        " one without an answer; nested repetitions such as (a+)+ are the usual cause",
        stacklevel=4,
    )


_EXTRACTORS: dict[str, Callable[[str], Span | None]] = {
    "boxed": _last_boxed,
    "hash": lambda text: _last_match(_HASH, text),
    "phrase": _last_phrase,
    "tag": lambda text: _last_match(_TAGGED, text),
    "last_number": lambda text: _last_match(_LAST_NUMBER, text),
    "text": lambda text: (0, len(text)),
}
_AUTO_ORDER = ("boxed", "hash", "phrase", "last_number")


@dataclass(frozen=True)
class AnswerExtractor:
    r"""Finds the final answer in a completion's text.

    Kinds, each taking the last match: ``boxed`` (``\boxed{}`` or ``\fbox{}``, braces may nest),
    ``hash`` (``#### x`` to the end of the line), ``tag`` (``<answer>x</answer>``), ``phrase`` ("the
    answer is x", to the end of the sentence or to its reason; of "(B) 42" the letter),
    ``last_number`` (sign, decimals, thousands, powers of ten, fractions, mixed numbers, per
    cent), ``regex`` (the one group of ``pattern``), ``text`` (the whole text), ``auto`` (the first
    of boxed, hash, phrase, last_number that finds something).

    Attributes:
        kind: one of the kinds above.
        pattern: a regular expression with exactly one group, for ``kind="regex"`` only. It may take
            0.2 s of CPU time on a text. A text that takes longer has no answer; the first one is a
            warning.

    Raises:
        ValueError: unknown kind, or a pattern that is missing, superfluous, malformed or without
            exactly one group.

    Example:
        >>> AnswerExtractor()(r"2 + 2 is \boxed{4}.")
        '4'
    """

    kind: str = "auto"
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        known = sorted([*_EXTRACTORS, "auto", "regex"])
        if self.kind not in known:
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {known}")
        if (self.kind == "regex") != (self.pattern is not None):
            raise ValueError(
                f"pattern={self.pattern!r} with kind={self.kind!r}: give a pattern with"
                " kind='regex' only"
            )
        if self.pattern is not None:
            groups = compiled(self.pattern).groups
            if groups != 1:
                raise ValueError(
                    f"pattern={self.pattern!r} has {groups} groups; mark the answer with exactly"
                    " one"
                )

    def __call__(self, text: str) -> str | None:
        """Return the final answer in ``text``, stripped; None where there is none."""
        span = self.span(text)
        return None if span is None else text[slice(*span)]

    def span(self, text: str) -> Span | None:
        """Return where in ``text`` the final answer begins and ends; None where there is none."""
        if self.pattern is not None:
            found = _last_by_pattern(self.pattern, text)
        else:
            kinds = _AUTO_ORDER if self.kind == "auto" else (self.kind,)
            spans = (_EXTRACTORS[kind](text) for kind in kinds)
            found = next((span for span in spans if span is not None and span[0] < span[1]), None)
        span = None if found is None else _trimmed(text, found)
        return span if span is not None and normalise(text[slice(*span)]) else None


class FindsAnswers:
    """What all share that find the final answer of a completion.

    Args:
        extractor: finds the final answer of a completion.
    """

    def __init__(self, extractor: AnswerExtractor = AnswerExtractor()):
        self.extractor = extractor
