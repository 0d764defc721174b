"""Gold answers as data sets hold them: which can be read, and when an answer is right.

Read in this order: `gold_texts` (a value of a column to texts), `GoldReader` (to answers, and the
check in setup), `is_right`.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from rlif_lightning.answers.clusters import ComparesAnswers, is_correct
from rlif_lightning.answers.extraction import AnswerExtractor

# Every row's type is checked, but only so many rows are read. Reading takes seconds, and faults of
# this kind occur all over a column.
MAX_READ = 20_000
_SHOWN_ROWS = 3
# Rows in which worked solutions are looked for, and the kinds of marks that they give answers by.
_TRIED = 20
_MARKS = ("hash", "boxed", "tag")
_CUT = re.compile(r"\\\\|\\[{}]")  # a row break and printed braces, which need not balance


def gold_texts(value: Any) -> list[str]:
    """Return the texts of one gold answer: one, or several where any of them is right.

    A text is taken as it is. A number is spelled plainly: 33.0 as 33, 1e-05 as 0.00001. A list,
    tuple or array is a set of acceptable answers.

    Raises:
        ValueError: a value that is no answer (missing, a bool, bytes, a date, named values, NaN, an
            empty or nested list); says what it is and what to do.

    Example:
        >>> gold_texts([33.0, "thirty-three"])
        ['33', 'thirty-three']
    """
    value = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    if not isinstance(value, (list, tuple)):
        return [_text(value)]
    if not value:
        raise ValueError(
            "is an empty list: no answer would be right; list one at least, or leave the row out"
        )
    return [_text(item) for item in value]


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        plain = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    raise ValueError(f"is {value!r:.100} ({type(value).__name__}), not an answer: {_remedy(value)}")


def _remedy(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"name one of {sorted(map(str, value))!r:.200} by a dotted path, as in"
            " reward_model.ground_truth"
        )
    if isinstance(value, bool):
        return 'write the word that is right, such as "yes", as a text'
    if isinstance(value, (list, tuple)):
        return "a list holds texts and numbers, any of which is right, not lists"
    if value is None or isinstance(value, (float, Decimal)):
        return "leave such rows out, or set data.answer_column=null to train without labels"
    if isinstance(value, datetime.date):
        return (
            "the reader of JSON takes such a text for a date; read the rows by LocalFiles, or keep"
            " them as Parquet, where it is a text"
        )
    return "write it as a text"


def _is_cut(text: str) -> bool:
    """Return whether a LaTeX text has an unmatched bracket, as a truncated one has."""
    if "\\" not in text:
        return False
    bare = _CUT.sub(" ", text)
    pairs = (("{", "}"), ("\\left", "\\right"), ("\\begin", "\\end"))
    # \leftarrow and \rightarrow are words of their own.
    bare = re.sub(r"\\(?:left|right)(?:right)?(?:arrow|harpoon)", " ", bare)
    return any(bare.count(opening) != bare.count(closing) for opening, closing in pairs)


@dataclass(frozen=True)
class GoldReader:
    """Reads gold answers.

    Args:
        extractor: finds the answer in a text of the column.
    """

    extractor: AnswerExtractor = AnswerExtractor("text")

    def __call__(self, value: Any) -> list[str]:
        """Return a value's acceptable answers; empty where the extractor finds none.

        Raises:
            ValueError: the value is no answer (see :func:`gold_texts`).
        """
        return [answer for answer in map(self.extractor, gold_texts(value)) if answer is not None]

    def check(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Read a whole column, the first 20 000 rows through the extractor.

        Args:
            column: named in messages, such as "data.answer_column='answer'".
            values: row numbers and values.
            where: the rows' origin in words, such as "the train split".

        Returns:
            One line on the answers that cannot be read; None where all can.

        Raises:
            ValueError: a value that is no answer (names the row), or an extractor that finds
                nothing in most of them.
        """
        number, unread, empty, first = 0, [], 0, {}
        for row, value in values:
            try:
                texts = gold_texts(value)
            except ValueError as error:
                raise ValueError(f"{column}: row {row} of {where} {error}") from error
            if number == MAX_READ:
                continue
            number += 1
            first |= {row: texts} if number <= _TRIED else {}
            answers = [answer for answer in map(self.extractor, texts) if answer is not None]
            empty += not answers
            if all(map(_is_cut, answers)):
                unread.append(f"{row} {texts[0]!r:.80}")
        if 2 * empty > number:
            raise ValueError(
                f"gold_extractor={self.extractor.pattern or self.extractor.kind!r} finds no answer"
                f" in {empty} of"
                f" {number} gold answers of {column} in {where}, such as row {unread[0]}; choose"
                " another one, or another column (gold_extractor.kind=text takes the whole text)"
            )
        if self.extractor.kind == "text":
            _refuse_solutions(column, first, where)
        if not unread:
            return None
        return (
            f"{len(unread)} of {number} gold answers of {column} in {where} cannot be read (cut"
            " off, or no answer in them), so hardly any completion is right there: rows"
            f" {', '.join(unread[:_SHOWN_ROWS])}" + (", ..." if len(unread) > _SHOWN_ROWS else "")
        )


def _refuse_solutions(column: str, rows: dict[int, list[str]], where: str) -> None:
    """Refuse rows of which most are worked solutions: taken whole they would equal no answer."""
    found = {row: [_marked(text) for text in texts] for row, texts in rows.items()}
    solved = {row: kinds[0] for row, kinds in found.items() if all(kinds)}
    if 2 * len(solved) <= len(rows):
        return
    row, kind = next(iter(solved.items()))
    raise ValueError(
        f"{column}: gold answers of {where} are worked solutions, such as row {row}"
        f" {rows[row][0]!r:.120}, and the whole text of each is taken for the answer, which no"
        f" completion gives; set gold_extractor.kind={kind} (of model.evaluation.checker"
        "=AnswerChecker, and of a reward that reads them), or name another column"
    )


def _marked(text: str) -> str | None:
    """Return the kind of mark that an answer has inside of a longer text; None without one."""
    for kind in _MARKS:
        answer = AnswerExtractor(kind)(text)
        if answer is not None and not is_right(answer, [text]):
            return kind
    return None


def is_right(answer: str | None, gold: Sequence[str], equivalence: str = "exact") -> bool:
    """Return whether an answer is equivalent to an acceptable one; never where there is none."""
    return any(is_correct(answer, each, equivalence) for each in gold)


class ComparesWithGold(ComparesAnswers):
    """What all share that compare a completion's final answer with a gold answer.

    Args:
        extractor: finds the final answer of a completion.
        gold_extractor: finds it in the gold column (`hash` for GSM8K's worked solutions).
        equivalence: as for :class:`ComparesAnswers`.

    Raises:
        ValueError: an unknown equivalence.
    """

    def __init__(
        self,
        extractor: AnswerExtractor = AnswerExtractor(),
        gold_extractor: AnswerExtractor = AnswerExtractor("text"),
        equivalence: str = "exact",
    ):
        super().__init__(extractor, equivalence)
        self.gold = GoldReader(gold_extractor)
