"""What an answer is and when it is right: read `Checker`, then the three kinds here.

``AnswerChecker`` compares mathematical answers, letters and words, ``LiteralChecker`` Python
literals; ``CodeChecker`` runs code against tests, in a sandbox.
"""

from __future__ import annotations

import ast
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlif_lightning.answers.clusters import open_clusters
from rlif_lightning.answers.code_tasks import TEST_COLUMNS
from rlif_lightning.answers.code_verdicts import RunsCode
from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.answers.gold_answers import ComparesWithGold, is_right
from rlif_lightning.data.described import Described

# A longer literal is no answer. The bound also keeps Python's parser far from its own limits.
_MAX_LITERAL = 4096
_MAX_EQUALS = 16  # of an assertion that are tried


class Checker(Described, ABC):
    """Finds the answers of completions, groups equal ones, and judges them.

    Used by validate and test only.
    """

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """Return the answer in a completion's text; None where there is none."""

    def cluster(self, answers: Sequence[str | None]) -> tuple[list[int | None], list[str]]:
        """Group the answers of one problem.

        Returns a cluster id for each answer (None stays None), and each cluster's answer.

        Ids count from 0 by frequency, then alphabetically. Here: equal strings; override it where
        more is equal.
        """
        counts = Counter(answer for answer in answers if answer is not None)
        order = sorted(counts, key=lambda answer: (-counts[answer], answer))
        return [None if answer is None else order.index(answer) for answer in answers], order

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Check the gold answers in setup, before anything is sampled; here: nothing.

        Args:
            column: the column named by ``data.answer_column``.
            values: row numbers and values of the column.
            where: the rows' origin in words, such as "the train split".

        Returns:
            One line on answers that cannot be used, where a run is still possible.

        Raises:
            ValueError: an answer that makes a run impossible; names the row.
        """
        return None

    @abstractmethod
    def correct(
        self, answers: Sequence[str | None], problems: Sequence[Mapping[str, Any]], gold_column: str
    ) -> list[bool]:
        """Judge answers; None is wrong.

        Args:
            answers: n answers, from :meth:`answer` or :meth:`cluster`.
            problems: the data-set row of each of them, all columns, and ``gold_column`` where that
                is a dotted path.
            gold_column: the column named by ``data.answer_column``.

        Raises:
            ValueError: a gold answer cannot be used; names what is wrong with it.
        """


class AnswerChecker(ComparesWithGold, Checker):
    """Answers that mean the same as the gold answer, or as one of a list of them, are right.

    Two answers are compared by ``clusters.py``; what a gold answer may be is in
    ``gold_answers.py``.

    Args:
        extractor: finds the final answer of a completion.
        gold_extractor: finds it in the gold column (`hash` for GSM8K's worked solutions).
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`); math_verify accepts numbers rounded to six digits too.

    Raises:
        ValueError: an unknown equivalence.
    """

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse what is no answer, and count what cannot be read (:meth:`GoldReader.check`)."""
        return self.gold.check(f"data.answer_column={column!r}", values, where)

    def answer(self, text: str) -> str | None:
        """Return the final answer that the extractor finds."""
        return self.extractor(text)

    def cluster(self, answers: Sequence[str | None]) -> tuple[list[int | None], list[str]]:
        """Group equivalent answers."""
        return open_clusters(answers, equivalence=self.equivalence)

    def correct(
        self, answers: Sequence[str | None], problems: Sequence[Mapping[str, Any]], gold_column: str
    ) -> list[bool]:
        """Return whether each answer is equivalent to the gold one, or to one of several."""
        gold = [self.gold(problem[gold_column]) for problem in problems]
        pairs = zip(answers, gold, strict=True)
        return [is_right(answer, acceptable, self.equivalence) for answer, acceptable in pairs]


class LiteralChecker(FindsAnswers, Checker):
    """Compares Python literals: right if ``==`` to the gold literal (CRUXEval). Runs nothing.

    Of an answer such as ``assert f(3) == [1, 2]`` what follows ``==`` counts. As in Python,
    ``1 == 1.0 == True``.

    Args:
        extractor: finds the literal in a completion.
    """

    def __init__(
        self,
        extractor: AnswerExtractor = AnswerExtractor("regex", r"(?s)\[ANSWER\](.*?)\[/ANSWER\]"),
    ):
        super().__init__(extractor)

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse a missing value; one that is no literal is refused by :meth:`correct`."""
        for row, value in values:
            if value is None:
                raise ValueError(
                    f"data.answer_column={column!r}: row {row} of {where} is None; write a"
                    " literal, as text"
                )

    def answer(self, text: str) -> str | None:
        """Return the literal in one spelling; None where there is no literal."""
        found = _literal(self.extractor(text) or "")
        return found.spelling if found else None

    def correct(
        self, answers: Sequence[str | None], problems: Sequence[Mapping[str, Any]], gold_column: str
    ) -> list[bool]:
        """Return whether each literal equals the gold one."""
        verdicts = []
        for answer, problem in zip(answers, problems, strict=True):
            gold = _literal(str(problem[gold_column]))
            if gold is None:
                raise ValueError(
                    f"gold answer {problem[gold_column]!r} in column {gold_column!r} is no Python"
                    " literal"
                )
            given = _literal(answer or "")
            verdicts.append(given is not None and bool(given.value == gold.value))
        return verdicts


class CodeChecker(RunsCode, Checker):
    """Counts code as right that passes all tests of its problem.

    HumanEval, MBPP, LiveCodeBench; see ``task_of``.

    The whole completion is the answer, because its code can depend on the prompt that it continues.
    So answers are equal only where texts are, and agreement, diversity and maj@k say little.

    Args:
        extractor: finds the code of a completion.
        sandbox: where and within which limits the code runs.

    Raises:
        ValueError: no sandbox that is strong enough.
    """

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse a column that holds no tests."""
        if column not in TEST_COLUMNS:
            raise ValueError(
                f"data.answer_column={column!r} holds no tests; choose one of {list(TEST_COLUMNS)}"
            )

    def answer(self, text: str) -> str | None:
        """Return the text; None where it is blank."""
        return text if text.strip() else None

    def correct(
        self, answers: Sequence[str | None], problems: Sequence[Mapping[str, Any]], gold_column: str
    ) -> list[bool]:
        """Return whether each answer's code passes every test of its problem.

        All columns of tests count together.
        """
        self.check_gold(gold_column, (), "")
        rates = self.pass_rates([answer or "" for answer in answers], problems)
        return [rate == 1.0 for rate in rates]


@dataclass(frozen=True)
class _Literal:
    value: Any
    spelling: str


def _literal(text: str) -> _Literal | None:
    """Read a literal, or what follows ``==`` in an assertion, without running anything.

    A ``==`` behind which there is no literal is part of the call.
    """
    if len(text) > _MAX_LITERAL:
        return None
    parts = text.split("==", _MAX_EQUALS)
    for candidate in (text, *("==".join(parts[n:]) for n in range(1, len(parts)))):
        try:
            with warnings.catch_warnings():
                # The parser warns about the text itself, such as "1 is 1" or "\d".
                warnings.simplefilter("ignore")
                value = ast.literal_eval(candidate.strip())
            return _Literal(value, _spelling(value))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _spelling(value: Any) -> str:
    """Write a value as ``repr`` does, but sets and dictionaries in one order in every process."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                sorted(f"{_spelling(key)}: {_spelling(item)}" for key, item in value.items())
            )
            + "}"
        )
    if isinstance(value, set):
        return "{" + ", ".join(sorted(map(_spelling, value))) + "}" if value else "set()"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelling, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_spelling, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
