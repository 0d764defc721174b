r"""Ask math-verify about what ``readers.py`` cannot read, except its known mistakes.

The library drops bases, units, brackets and stray letters (``1011_2`` is 1011 to it, ``12+10t`` is
22), so these are compared here first. It adds numbers that stand side by side (``3 4`` is 7 to it),
so it is not asked about these. Its time is bounded for one question
(``math_verify_process.py``), for a group and for a rollout (`Budget`); what is undecided when the
time is used up counts as different.

Source: https://github.com/huggingface/Math-Verify
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from rlif_lightning.answers.expression_tokens import GREEK
from rlif_lightning.answers.math_verify_process import Verdict, ask
from rlif_lightning.answers.reading import Reading
from rlif_lightning.answers.units import split_unit

# CPU seconds of math-verify for the answers of one group, and of all groups of one rollout.
GROUP_SECONDS = 1.0
ROLLOUT_SECONDS = 10.0
_MEMO_SIZE = 65_536

# What math-verify may see. It reads words as products of letters, which makes anagrams equal.
_MATHS = re.compile(r"[0-9\\=<>+*/^]|(?<![A-Za-z]{2})-")
_NUMERAL = re.compile(r"[0-9A-Z.]+_(?:\{\w+\}|\w)")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_BRACKETS = re.compile(r"\\[{}]|[()\[\],]")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|approx|in)(?![A-Za-z])")
_INDEX = re.compile(r"_\{[^{}]*\}")
# What no reader is certain of, and what the library decides all the same: ``3 4`` (a list, but not
# the mixed number ``3 1/4``), ``2^3^2``, ``3!!``, ``5'10"``, ``1.2.3``, and ``5R2``, where a number
# is right behind a letter other than x.
_UNCERTAIN = re.compile(
    r"(?<![\^_0-9.])[0-9.]+ [0-9.]+(?![0-9./])|!!|\^(?:\w|\{[^{}]*\})\^|[0-9] ?'.*[0-9]"
    r"|[0-9]\.[0-9]+\.[0-9]|(?<![\\A-Za-z])[A-WYZa-wyz] ?[0-9]"
)
# Words between numbers say in which order these count: "3 to 5", "1 yd 2 ft". To the library they
# are products, in any order. ``dx`` is no word.
_WORD = re.compile(r"(?<![A-Za-z])(?!d[a-z](?![A-Za-z]))[A-Za-z]{2,}")
_PIECE = re.compile(r"[0-9]+|[A-Za-z]+")
_COMPUTED = ("value", "function", "list", "sequence")


@dataclass
class Budget:
    """CPU seconds that math-verify may take.

    Attributes:
        group: for one group; renewed by :meth:`next_group`.
        rollout: for all groups together.
        undecided: groups in which a comparison was left undecided, by number.
    """

    group: float = GROUP_SECONDS
    rollout: float = ROLLOUT_SECONDS
    undecided: set[int] = field(default_factory=set)
    _index: int = 0
    _spent: float = 0.0

    def next_group(self) -> None:
        """Begin another group, which has its own time."""
        self._index, self._spent = self._index + 1, 0.0

    def question(self, *strings: str) -> bool:
        """Return the library's verdict, remembered; False where there is no time for it."""
        verdict = _verdicts.get(strings)
        if verdict is None:
            if self._spent >= self.group or self.rollout <= 0:
                self.undecided.add(self._index)
                return False
            verdict = _remember(strings, ask(list(strings)))
            self._spent += verdict.seconds
            self.rollout -= verdict.seconds
        if not verdict.decided:
            self.undecided.add(self._index)
        return verdict.equal


_verdicts: dict[tuple[str, ...], Verdict] = {}


def _remember(strings: tuple[str, ...], verdict: Verdict) -> Verdict:
    if len(_verdicts) >= _MEMO_SIZE:
        _verdicts.clear()
    _verdicts[strings] = verdict
    return verdict


def library_equal(
    a: str, b: str, readings: tuple[Reading, Reading], rounding: bool, budget: Budget
) -> bool:
    """Return whether math-verify calls two normalised answers equal and may be believed.

    Both orders are asked.

    Args:
        a: an answer.
        b: another.
        readings: of both; where both are known, the library decides on rounded numbers only.
        rounding: believe that a decimal of six digits equals what it is rounded from.
        budget: its time.

    Raises:
        RuntimeError: math-verify's process cannot be started at all.
    """
    x, y = readings
    are_known = x.known and y.known
    if are_known and not (rounding and _same_form(x, y)):
        return False
    if not _believable(a, b, rounding) or not (are_known or _in_one_order(a, b)):
        return False
    first, second = sorted(split_unit(text).value if are_known else text for text in (a, b))
    return budget.question(first) and budget.question(second) and budget.question(first, second)


def _same_form(x: Reading, y: Reading) -> bool:
    """Return whether two answers have one form.

    Both are numbers, or lists or points of the same kind and length, and units and names do not
    contradict.
    """
    p, q = x.bare, y.bare
    if p[0] != q[0] or p[0] not in _COMPUTED or len(p) != len(q):
        return False
    if p[0] == "sequence" and p[:3] != q[:3]:
        return False
    return not (x.unit and y.unit and x.unit != y.unit) and not (
        x.label and y.label and x.label != y.label
    )


def _believable(a: str, b: str, rounding: bool) -> bool:
    if not (_MATHS.search(a) and _MATHS.search(b)):
        return False
    if _UNCERTAIN.search(a) or _UNCERTAIN.search(b):
        return False
    if any(_RELATION.search(_INDEX.sub("", text)) for text in (a, b)):
        return False  # it compares one side of them, or calls two wrong statements equal
    if not rounding and bool(_DECIMAL.search(a)) != bool(_DECIMAL.search(b)):
        return False
    same = all(
        Counter(pattern.findall(a)) == Counter(pattern.findall(b))
        for pattern in (_NUMERAL, _BRACKETS)
    )
    return same and _letters(a) == _letters(b)


def _in_one_order(a: str, b: str) -> bool:
    """Return whether numbers and words stand in one order, where there are words at all."""
    bare = [_COMMAND.sub(" ", text) for text in (a, b)]
    return not any(map(_WORD.search, bare)) or _PIECE.findall(bare[0]) == _PIECE.findall(bare[1])


def _letters(text: str) -> set[str]:
    """Return every letter outside a command, and every Greek one."""
    greek = {name for name in _COMMAND.findall(text) if name in GREEK}
    return greek | set(re.findall("[A-Za-z]", _COMMAND.sub(" ", text)))
