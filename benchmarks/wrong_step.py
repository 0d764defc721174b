"""Feedback by a rule: the first step of a worked sum that is wrong, as it was written."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Callback

from rlif_lightning.data.described import Described
from rlif_lightning.learning.feedback import FeedbackWriter
from rlif_lightning.records import RewardOutput, Rollout

MARK = "####"  # before the answer
RIGHT = "="  # the feedback on a right completion


def first_wrong_step(question: str, text: str) -> str | None:
    """Return the first wrong equation of a worked sum, or else its answer if that is wrong.

    Example:
        >>> first_wrong_step("3+4+5=", "3+4=8;8+5=13####13")
        '3+4=8'
        >>> first_wrong_step("3+4+5=", "####13")
        '####13'

    Args:
        question: such as ``3+4+5=``.
        text: such as ``3+4=7;7+5=12####12``.

    Returns:
        The step as it was written; None where there is no wrong one, or no answer mark.
    """
    work, mark, answer = text.partition(MARK)
    if not mark:
        return None
    for step in work.split(";") if work else []:
        left, equals, right = step.partition("=")
        if not equals or _total(left) is None or _total(left) != _total(right):
            return step or None
    return None if _total(answer) == _total(question.rstrip("=")) else f"{MARK}{answer}"


def _total(terms: str) -> int | None:
    parts = terms.split("+")
    return sum(map(int, parts)) if all(part.isdecimal() for part in parts) else None


class FirstWrongStep(Described, FeedbackWriter, Callback):
    """Shows a teacher the first wrong step of a completion, or that there is none.

    The rule adds the numbers itself, so it knows the answers: the run is not label-free.

    Args:
        tells_right: write ``=`` on right completions; otherwise they have no feedback.
    """

    needs_gold = True

    def __init__(self, tells_right: bool = True):
        self.tells_right = tells_right

    def feedback(self, rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> list[str | None]:
        questions = rollout.column("question")
        return [
            self.words(question, text)
            for question, text in zip(questions, rollout.texts, strict=True)
        ]

    def words(self, question: str, text: str) -> str | None:
        """Return the feedback on one completion; None on one without an answer."""
        wrong = first_wrong_step(question, text)
        return RIGHT if wrong is None and MARK in text and self.tells_right else wrong
