"""Feedback by a rule: the first step of a worked sum that is wrong, as it was written."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Callback

from rlif_lightning.data.described import Described
from rlif_lightning.learning.feedback import FeedbackWriter
from rlif_lightning.records import RewardOutput, Rollout

MARK = "####"  # before the answer


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
    """Shows a teacher the first wrong step; right completions get no feedback.

    The rule adds the numbers itself, so it knows the answers: the run is not label-free.
    """

    needs_gold = True

    def feedback(self, rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> list[str | None]:
        questions = rollout.column("question")
        return [
            first_wrong_step(question, text)
            for question, text in zip(questions, rollout.texts, strict=True)
        ]
