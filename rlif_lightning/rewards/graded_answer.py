"""Rewards of answers in tags: partial credit against gold, and a penalty for what is no answer.

Both are of https://arxiv.org/abs/2605.25988, which multiplies the first by what a checker says
(``checker.py``) and adds the second.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.answers.gold_answers import GoldReader
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead

TAGGED = AnswerExtractor("tag")
_SHARES = {"match": 0.35, "overlap": 0.15, "form": 0.10}
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_words(text: str) -> list[str]:
    """Return the words of a text as SQuAD compares them: lower case, no articles, no punctuation.

    Example:
        >>> plain_words("The aspirin, 100 mg.")
        ['aspirin', '100', 'mg']
    """
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def overlap_of(answer: str, gold: str) -> float:
    """Return SQuAD's F1: the harmonic mean of the shares of words that both texts have.

    Example:
        >>> overlap_of("aspirin 100 mg daily", "100 mg of aspirin")
        0.75
    """
    one, other = plain_words(answer), plain_words(gold)
    if not one or not other:
        return float(one == other)
    both = (Counter(one) & Counter(other)).total()
    return 2 * both / (len(one) + len(other))


def form_of(answer: str | None) -> float:
    """Return how much of an answer there is: 0 without one, from 0.5 on, 1 from 80 characters on.

    Example:
        >>> form_of(None), form_of("x" * 19), form_of("x" * 50), form_of("x" * 80)
        (0.0, 0.5, 0.75, 1.0)
    """
    if answer is None:
        return 0.0
    return 0.5 + min(max(len(answer) - 20, 0), 60) / 120


class GradedAnswer(FindsAnswers, RewardHead):
    """Scores an answer in [0, 1] by exact match, words in common, and how much of it there is.

    ``(0.35 match + 0.15 F1 + 0.10 form) / 0.60``, with SQuAD's match and F1, against the best of
    several gold answers. NaN where the gold answer cannot be read.

    Args:
        column: the data set's column of gold answers, or a dotted path.
        extractor: finds the answer in a completion.
    """

    needs_gold = True

    def __init__(self, column: str = "answer", extractor: AnswerExtractor = TAGGED):
        RewardHead.__init__(self)
        FindsAnswers.__init__(self, extractor)
        self.column, self.gold_columns, self.gold = column, (column,), GoldReader()

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse what is no answer, and count what cannot be read (:meth:`GoldReader.check`)."""
        return self.gold.check(f"GradedAnswer.column={column!r}", values, where)

    def forward(self, rollout: Rollout) -> RewardOutput:
        gold = [self.gold(value) for value in rollout.column(self.column)]
        answers = [self.extractor(text) for text in rollout.texts]
        scores = [
            max((_graded(answer, text) for text in acceptable), default=torch.nan)
            for answer, acceptable in zip(answers, gold, strict=True)
        ]
        return RewardOutput(torch.tensor(scores, device=rollout.mask.device))


def _graded(answer: str | None, gold: str) -> float:
    given = "" if answer is None else answer
    parts = {
        "match": float(answer is not None and plain_words(given) == plain_words(gold)),
        "overlap": overlap_of(given, gold) if answer is not None else 0.0,
        "form": form_of(answer),
    }
    return sum(share * parts[name] for name, share in _SHARES.items()) / sum(_SHARES.values())


class ShortAnswerPenalty(FindsAnswers, RewardHead):
    """Scores -0.5 without an answer, -0.3 for one of fewer than 50 characters, else 0.

    Beside other heads use ``advantage: GRPO``, which sums rewards before it normalises.

    Args:
        extractor: finds the answer in a completion.
    """

    def __init__(self, extractor: AnswerExtractor = TAGGED):
        RewardHead.__init__(self)
        FindsAnswers.__init__(self, extractor)

    def forward(self, rollout: Rollout) -> RewardOutput:
        answers = [self.extractor(text) for text in rollout.texts]
        scores = [-0.5 if each is None else -0.3 if len(each) < 50 else 0.0 for each in answers]
        return RewardOutput(torch.tensor(scores, device=rollout.mask.device))
