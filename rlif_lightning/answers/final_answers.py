"""Extract, normalise, compare and cluster the final answers of completions.

Read in this order: ``AnswerExtractor`` (text -> answer), ``normalise`` (answer -> canonical string), ``equivalent``
(two answers), ``cluster`` (the answers of one group). The library ``math-verify`` decides what is neither a plain
number nor plain words; ``math_verify_process.py`` says how it is kept from stalling a step.

Left out: units and number words beyond those math-verify knows, and the meaning of free text (see a judge head).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlif_lightning.answers.math_verify_process import ask

# Longer answers are text: whitespace is collapsed and only equal strings are equal. Also bounds what math-verify sees.
_MAX_LENGTH = 256
_MEMO_SIZE = 65_536

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_SIGN = r"(?:(?<![\w.)\]}])[-+\u2212])?"  # "5-3" ends in 3, not in -3
_LAST_NUMBER = re.compile(rf"({_SIGN}(?:\\[dt]?frac\{{-?[0-9]+\}}\{{-?[0-9]+\}}|(?:{_NUMBER})(?:/[0-9]+)?))")
_HASH = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(r"\banswer\s*(?:is\b|:|=)[\s:*]*([^\n]+?)(?=\.(?:\s|\*|$)|\n|$)", re.IGNORECASE)
_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    found = [match[1].strip() for match in pattern.finditer(text) if match[1]]
    return found[-1] if found else None


def _last_boxed(text: str) -> str | None:
    r"""Content of the last non-empty ``\boxed{...}`` or ``\fbox{...}`` that closes; one pass, so linear in the text."""
    best, opened = (-1, ""), []
    for token in _BOX_TOKENS.finditer(text):
        if token[0][-1] == "{" and token[0] != r"\{":
            opened.append((token.end(), len(token[0]) > 1))
        elif token[0] == "}" and opened:
            start, is_box = opened.pop()
            content = text[start : token.start()].strip()
            if is_box and content:
                best = max(best, (start, content))
    return best[1] or None


_EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "boxed": _last_boxed,
    "hash": lambda text: _last_match(_HASH, text),
    "phrase": lambda text: (_last_match(_PHRASE, text) or "").strip("*"),
    "last_number": lambda text: _last_match(_LAST_NUMBER, text),
    "text": lambda text: text,
}
_AUTO_ORDER = ("boxed", "hash", "phrase", "last_number")


@dataclass(frozen=True)
class AnswerExtractor:
    r"""Finds the final answer in a completion's text.

    Kinds, each taking the last match: ``boxed`` (``\boxed{}`` or ``\fbox{}``, braces may nest), ``hash`` (``#### x`` to
    the end of the line), ``phrase`` ("the answer is x", to the end of the sentence), ``last_number`` (sign, decimals,
    thousands commas, fractions), ``regex`` (the one group of ``pattern``), ``text`` (the whole text), ``auto`` (the
    first of boxed, hash, phrase, last_number that finds something).

    Attributes:
        kind: one of the kinds above.
        pattern: a regular expression with exactly one group, for ``kind="regex"`` only.

    Raises:
        ValueError: unknown kind, or a pattern that is missing, superfluous, malformed or without exactly one group.

    Example:
        >>> AnswerExtractor()(r"2 + 2 is \boxed{4}.")
        '4'
    """

    kind: str = "auto"
    pattern: str | None = None

    def __post_init__(self) -> None:
        known = sorted([*_EXTRACTORS, "auto", "regex"])
        if self.kind not in known:
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {known}")
        if (self.kind == "regex") != (self.pattern is not None):
            raise ValueError(f"pattern={self.pattern!r} with kind={self.kind!r}: give a pattern with kind='regex' only")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern={self.pattern!r} is not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"pattern={self.pattern!r} has {groups} groups; mark the answer with exactly one")

    def __call__(self, text: str) -> str | None:
        """The final answer in ``text``, stripped; None where there is none."""
        if self.pattern is not None:
            answer = _last_match(re.compile(self.pattern), text)
        else:
            kinds = _AUTO_ORDER if self.kind == "auto" else (self.kind,)
            answer = next(filter(None, (_EXTRACTORS[kind](text) for kind in kinds)), None)
        return answer.strip() if answer and normalise(answer) else None


# A unit after a plain number says no more than the question did, and graders of MATH drop it; "5 million" is not 5.
_UNIT = re.compile(
    r"((?:\\?\$)?[-+\u2212]?(?:[0-9][0-9,.]*|\\[dt]?frac\{[0-9]+\}\{[0-9]+\}))\s*\\(?:text|mathrm|mbox|textrm)\s*\{\s*"
    r"(?!(?:hundred|thousand|million|billion|trillion|dozen|percent|[ap]\.?m)\b)[a-zA-Z][a-zA-Z./ ]*\}(?:\^\{?[23]\}?)?"
)
_CHOICE = re.compile(r"\(\s*([A-Z])\s*\)")
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\?\$", ""),  # TeX delimiters and dollar amounts
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),  # the look-behind spares a matrix's row break
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|mathrm|textbf|textit|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\?%|\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|°", ""),  # 50% is 50 and 90° is 90, as graders of MATH do
        ("\u2212", "-"),
        (r"\{,\}", ","),
        (r"\s*([-+=*/^,;:|<>(){}\[\]])\s*", r"\1"),
    ]
]
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_DECIMAL = re.compile(r"([-+]?)([0-9]*)(?:\.([0-9]*))?")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ ,'-]+[^\W\d_]{2,})*")


def normalise(answer: str) -> str:
    r"""Canonical spelling of an answer, without changing its value. Idempotent.

    Takes away surrounding whitespace, markdown emphasis, ``$``, a final period, ``\left``/``\right``, TeX spacing,
    ``\text{}``, spaces around operators and brackets, per cent and degree signs (50% is 50, not 0.5). ``\dfrac``
    becomes ``\frac``. A plain number loses thousands commas, a leading +, needless zeros (``+1,050.0`` -> ``1050``,
    ``.50`` -> ``0.5``) and a unit in ``\text{}`` behind it. A choice loses its brackets ("(A)" -> "A"). Words alone are
    case-folded ("Yes" -> "yes"); letters in formulas keep their case. Other units are left to math-verify. An answer of
    more than 256 characters has its whitespace collapsed and nothing else.
    """
    text = " ".join(answer.split())
    if len(text) > _MAX_LENGTH:
        return text
    text = text.strip("*_`").rstrip(" .").strip()
    if unit := _UNIT.fullmatch(text.strip("$")):
        text = unit[1]
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    number = _DECIMAL.fullmatch(text)
    if number and (number[2] or number[3]):
        whole, part = number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
        text = f"{whole}.{part}" if part else whole
        text = "-" + text if number[1] == "-" and text != "0" else text
    elif _WORDS.fullmatch(text):
        text = text.casefold()
    return text if text == answer else normalise(text)


_INTEGER_OR_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")
_FRACTION = re.compile(r"(-?)(?:\\frac\{(-?[0-9]+)\}\{(-?[0-9]+)\}|([0-9]+)/([0-9]+))")
# What math-verify may see. It reads words as products of letters, which makes anagrams equal.
_MATHS = re.compile(r"[0-9\\=<>+*/^]|(?<![A-Za-z]{2})-")


def _rational(text: str) -> Fraction | None:
    """The exact value of a plain integer, decimal or fraction; None for anything else."""
    if _INTEGER_OR_DECIMAL.fullmatch(text):
        return Fraction(text)
    match = _FRACTION.fullmatch(text)
    if match is None or not int(match[3] or match[5]):
        return None
    return (-1 if match[1] else 1) * Fraction(int(match[2] or match[4]), int(match[3] or match[5]))


def _same(a: str, b: str) -> bool:
    """``equivalent`` for strings that are already normalised."""
    if a == b or max(len(a), len(b)) > _MAX_LENGTH:
        return a == b
    x, y = _rational(a), _rational(b)
    if x is not None and y is not None:
        pair = a + b
        rounded = "." in pair and ("/" in pair or "frac" in pair)  # 0.333333 and 1/3: math-verify rounds
        if x == y or not rounded:
            return x == y
    return bool(_MATHS.search(a) and _MATHS.search(b)) and _library_equal(*sorted((a, b)))


def equivalent(a: str, b: str) -> bool:
    """Whether two answers mean the same: normalised string, then exact number, then math-verify both ways round.

    Symmetric, but *not* transitive: math-verify rounds to six digits (``1/3`` equals both ``0.333333`` and
    ``0.3333334``, which differ). Two decimals, or two fractions, are compared exactly. Memoised. What math-verify
    cannot read or decide within 0.3 s of CPU time is not equal. Works in any thread and any process.

    Raises:
        RuntimeError: math-verify's process cannot be started at all.

    Source: https://github.com/huggingface/Math-Verify
    """
    return _same(normalise(a), normalise(b))


def open_clusters(answers: Sequence[str | None]) -> tuple[list[int | None], list[str]]:
    """``cluster`` together with each cluster's representative, the normalised string that opened it."""
    strings = [None if answer is None else normalise(answer) for answer in answers]
    counts = Counter(string for string in strings if string is not None)
    ids: dict[str | None, int | None] = {None: None}
    representatives: list[str] = []
    for string in sorted(counts, key=lambda s: (-counts[s], s)):
        ids[string] = next((i for i, first in enumerate(representatives) if _same(first, string)), len(representatives))
        if ids[string] == len(representatives):
            representatives.append(string)
    return [ids[string] for string in strings], representatives


def cluster(answers: Sequence[str | None]) -> list[int | None]:
    """Cluster ids for the answers of one group; None (no answer) stays None.

    Distinct normalised strings are taken in order of frequency, then alphabetically, and each joins the first earlier
    cluster whose *representative* (the string that opened it) is equivalent, or opens a new one. Equivalence is never
    chained through other members, and the order of the rows does not matter. Cluster 0 holds the most frequent string.

    Example:
        >>> cluster(["5", "3", None, "3.0"])
        [1, 0, None, 0]
    """
    return open_clusters(answers)[0]


@lru_cache(_MEMO_SIZE)
def _readable(text: str) -> bool:
    """Whether math-verify reads and evaluates this answer in time: a pathological one costs the time limit once."""
    return ask([text])


@lru_cache(_MEMO_SIZE)
def _library_equal(a: str, b: str) -> bool:
    return _readable(a) and _readable(b) and ask([a, b])


def is_correct(answer: str | None, gold: str | None) -> bool:
    """Whether an extracted answer is equivalent to the gold one.

    Raises:
        ValueError: there is no gold answer to compare with.
    """
    if gold is None:
        raise ValueError("a problem has an empty gold answer; clean the column or choose another gold extractor")
    return answer is not None and equivalent(answer, gold)
