"""Rewards to compare with: gold answers (supervised), a coin flip, format and length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import regex
import torch
from torch import Tensor

from rlif_lightning.answers.extraction import compiled, pattern_found
from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.answers.gold_answers import ComparesWithGold, is_right
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.sampling import counter_uniforms


class GoldAnswer(ComparesWithGold, RewardHead):
    """Scores 1 where the final answer is equivalent to the gold answer, else 0 (RLVR).

    NaN where the gold answer cannot be read.

    Args:
        column: the data set's column of gold answers, or a dotted path; a list there is a set of
            acceptable answers.
        extractor: finds the final answer of a completion.
        gold_extractor: finds it in the gold column (`hash` for GSM8K's worked solutions).
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`).

    Raises:
        ValueError: an unknown equivalence.
    """

    needs_gold = True

    def __init__(
        self,
        column: str = "answer",
        extractor: AnswerExtractor = AnswerExtractor(),
        gold_extractor: AnswerExtractor = AnswerExtractor("text"),
        equivalence: str = "exact",
    ):
        RewardHead.__init__(self)
        ComparesWithGold.__init__(self, extractor, gold_extractor, equivalence)
        self.column = column
        self.gold_columns = (column,)

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Refuse what is no answer, and count what cannot be read (:meth:`GoldReader.check`)."""
        return self.gold.check(f"GoldAnswer.column={column!r}", values, where)

    def forward(self, rollout: Rollout) -> RewardOutput:
        gold = [self.gold(value) for value in rollout.column(self.column)]
        answers = [self.extractor(text) for text in rollout.texts]
        pairs = zip(answers, gold, strict=True)
        scores = [
            float(is_right(answer, acceptable, self.equivalence)) if acceptable else torch.nan
            for answer, acceptable in pairs
        ]
        return RewardOutput(torch.tensor(scores, device=rollout.mask.device))


class Format(RewardHead):
    """Scores 1 where the completion's text matches a pattern, else 0.

    Args:
        pattern: regular expression, searched for anywhere in the text (`.` matches newlines). A
            search of more than 0.2 s of CPU time counts as not found; the first one is a warning.
    """

    def __init__(self, pattern: str):
        super().__init__()
        compiled(pattern, regex.DOTALL)  # refuses one that is none
        self.pattern = pattern

    def forward(self, rollout: Rollout) -> RewardOutput:
        found = [pattern_found(self.pattern, text) for text in rollout.texts]
        return RewardOutput(torch.tensor(found, dtype=torch.float32, device=rollout.mask.device))


class Length(RewardHead):
    """The completion's length in tokens; give it a negative weight to favour short completions."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(rollout.lengths.float())


class Random(RewardHead):
    """Scores by a fair coin: the control that every claim about a reward needs.

    Args:
        seed: of the coin, which shares no random number with the sampler, whatever the two seeds.
            The number of calls in training so far is kept in checkpoints. A prediction does not
            count calls, so its coins do not depend on batches or on interruptions.
    """

    calls: Tensor

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, rollout: Rollout) -> RewardOutput:
        group = range(rollout.group_size)
        index = [i for i in rollout.prompts.index.tolist() for _ in group]
        uniforms = counter_uniforms(
            self.seed, int(self.calls), index, list(group) * rollout.num_prompts, 1, "coin"
        )
        self.calls += self.training
        return RewardOutput((uniforms[:, 0] < 0.5).float().to(rollout.mask.device))
