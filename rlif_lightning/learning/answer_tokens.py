"""``AnswerTokens``: how much of the policy gradient the tokens of the final answer get.

The answer's place in the text comes from its extractor. A token's place is the length of the text
that its predecessors decode to. With ids for "7", "+", "5", "=", "1", "2", ".", and the answer
"12" at characters 4 to 6, the tokens 4 and 5 get the factor.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.answers.extraction import AnswerExtractor, Span
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.ratio_objectives import GMPO
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Rollout
from rlif_lightning.setting_types import check_types

BYTES = 4  # of a character at most
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class AnswerTokens:
    """Multiplies the policy loss of the tokens of each completion's final answer by a factor.

    https://arxiv.org/abs/2608.03119 trains without a gradient on the answer's tokens. They stay in
    every mean over tokens, and the reference KL and the entropy bonus act on them as on all others.
    A token counts if any character of it is part of the answer. A completion without an answer, or
    with one whose tokens cannot be located, is trained on as a whole.

    Logs ``answer/located`` and ``answer/tokens``.

    Args:
        factor: of the answer's tokens, in [0, 1]; 0 = no policy gradient, 1 = that of all others.
        extractor: finds the final answer; give it that of the vote.

    Raises:
        ValueError: a factor out of range.
    """

    factor: float = 0.0
    extractor: AnswerExtractor = AnswerExtractor()

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.factor <= 1:
            raise ValueError(f"answer_tokens.factor={self.factor} must lie in [0, 1]")

    def check(self, objective: Objective) -> None:
        """Refuse an objective in which a token's factor would reach other tokens.

        Raises:
            ValueError: names the objective and the remedy.
        """
        if isinstance(objective, GMPO):
            raise ValueError(
                "model.answer_tokens: GMPO has one ratio for a whole"
                " completion, through which the answer's tokens would get a gradient all the same;"
                " use an objective with a ratio for each token, such as Clipped, or set"
                " model.answer_tokens=null"
            )

    def factors(self, rollout: Rollout, tokenizer: Any) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return ``[B, T]`` float32 factors, and the figures (a collective).

        Args:
            rollout: of completions that ``tokenizer`` decodes.
            tokenizer: of the policy.
        """
        mask = rollout.mask
        is_answer, num_answers, num_located = torch.zeros(mask.shape, dtype=torch.bool), 0, 0

        def decode(ids: Sequence[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        lengths, every = rollout.lengths.tolist(), rollout.completion_ids.tolist()
        for number, (ids, length) in enumerate(zip(every, lengths, strict=True)):
            text = rollout.texts[number]
            span = self.extractor.span(text) if length else None
            if span is None:
                continue
            num_answers += 1
            found = token_span(ids[:length], text, span, decode)
            if found is not None:
                num_located += 1
                is_answer[number, slice(*found)] = True
        is_answer = is_answer.to(mask.device)
        counts = torch.tensor([num_located, num_answers], device=mask.device)
        sums = all_rank_sum(torch.stack([*counts, is_answer.sum(), mask.sum()])).double()
        located, answers, tokens, all_tokens = sums
        factors = torch.where(is_answer, self.factor, torch.ones(mask.shape, device=mask.device))
        return factors, {"answer/located": located / answers, "answer/tokens": tokens / all_tokens}


def token_span(ids: Sequence[int], text: str, span: Span, decode: Decode) -> Span | None:
    """Return the first token of a part of a text, and the one after its last.

    Args:
        ids: of a completion.
        text: what they decode to, which may have been cut before a stop string.
        span: the part, in characters; not empty.
        decode: returns the text of ids.

    Returns:
        None where the text of the tokens up to there is not the beginning of ``text``, as with a
        tokenizer whose text of a few tokens changes with the next one.
    """
    begin, end = span
    counts = range(len(ids) + 1)
    least = bisect_left(counts, end, key=lambda count: len(decode(ids[:count])))
    # The bytes of a character may be tokens of their own, with a text of their own.
    tried = counts[least : least + BYTES]
    last = next((count for count in tried if decode(ids[:count])[:end] == text[:end]), None)
    if last is None:
        return None
    first = bisect_right(counts[:last], begin, key=lambda count: len(decode(ids[:count]))) - 1
    return (first, last) if first >= 0 and text.startswith(decode(ids[:first])) else None


def weighed(rollout: Rollout, factors: Tensor) -> Rollout:
    """Return a rollout whose policy loss is multiplied by ``[B, T]`` factors."""
    given = rollout.token_weights
    return replace(rollout, token_weights=factors if given is None else given * factors)
