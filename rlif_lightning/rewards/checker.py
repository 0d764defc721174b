"""Checker-guided reward: a reward times what evidence says of a completion's claims.

https://arxiv.org/abs/2605.25988. Claims: ``claims.py``. What evidence says of them:
``claim_scorers.py``. docs/related/checker.md says what is published and what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.judges.base import RunModels
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.claim_scorers import LABELS, Claim, ClaimScorer, ClaimVerdict
from rlif_lightning.rewards.claims import ClaimExtractor, ClaimPattern, Questions
from rlif_lightning.rewards.evidence import Evidence, EvidenceColumn
from rlif_lightning.rewards.held_head import HoldsHead
from rlif_lightning.rewards.step_scores import StepScores

SIGNS = {"entailment": 1.0, "neutral": 0.0, "contradiction": -1.5}
WITHOUT_EVIDENCE = -0.1  # its code's
Held = tuple[str, ClaimVerdict | None]  # a claim that was held against evidence


def support_of(verdicts: Sequence[ClaimVerdict]) -> float:
    """Return the mean of sign times confidence over claims, in [-1, 1]; 0 without claims.

    Example:
        >>> claims = [ClaimVerdict("entailment", 0.9), ClaimVerdict("contradiction", 0.8)]
        >>> round(support_of(claims), 6)
        -0.15
    """
    if not verdicts:
        return 0.0
    total = math.fsum(SIGNS[each.label] * each.confidence for each in verdicts)
    return max(-1.0, min(1.0, total / len(verdicts)))


class CheckerReward(HoldsHead, RewardHead):
    """A reward head's score times ``1 + alpha * phi``, where phi says how far evidence supports it.

    ``phi`` is the mean over a completion's claims of sign times confidence, in [-1, 1]: +1 for
    entailment, 0 for neutral, -1.5 for contradiction. It is 0 without claims, and -0.1 for claims
    without evidence. Claims without a verdict are left out; where no claim has one, the completion
    has no score (NaN). With ``alpha: 0`` scores are the head's own, bit for bit, and phi is
    measured.

    Logs ``checker/...``. Tables of completions show ``checker_phi`` and ``checker_verdicts``.

    Args:
        head: the reward that is multiplied; its scores may not be negative.
        scorer: says what evidence says of claims.
        claims: finds them in a completion.
        evidence: what they are held against.
        alpha: how far phi counts (paper: 1); 0 = it is measured only.
        min_confidence: a verdict below it counts as neutral (its code: 0.65; the paper: 0).

    Raises:
        ValueError: a number out of range.
    """

    scalable = ("alpha",)

    def __init__(
        self,
        head: RewardHead,
        scorer: ClaimScorer,
        claims: ClaimExtractor = ClaimPattern(),
        evidence: Evidence = EvidenceColumn(),
        alpha: float = 1.0,
        min_confidence: float = 0.65,
    ):
        RewardHead.__init__(self)
        HoldsHead.__init__(self, head)
        if not (0 <= alpha < math.inf and 0 <= min_confidence <= 1):
            raise ValueError(
                f"alpha={alpha}, min_confidence={min_confidence}: need alpha >= 0 and"
                " min_confidence in [0, 1]"
            )
        self.gives_steps = head.gives_steps
        self.scorer, self.claims, self.evidence = scorer, claims, evidence
        self.alpha, self.min_confidence = alpha, min_confidence
        self.columns = tuple(dict.fromkeys((*head.columns, *evidence.columns)))

    @property
    def label_free_columns(self) -> tuple[str, ...]:
        """The evidence's columns, and those of the head if it needs no gold answers."""
        own = () if self.needs_gold else tuple(self.evidence.columns)
        return (*own, *self.head.label_free_columns)

    def bind(self, models: RunModels) -> None:
        for part in (self.head, self.claims, self.scorer):
            part.bind(models)

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse evidence that is no text, and parts that could not be asked."""
        HoldsHead.check(self, problems, group_size)
        self.claims.check()
        self.scorer.check()
        self.evidence.check(problems)

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions (a collective)."""
        output, device = self.ask_head(rollout), rollout.mask.device
        if self.alpha and float(all_rank_sum((output.scores < 0).sum())):
            raise ValueError(
                f"head={type(self.head).__name__} gives negative scores, which support would lower;"
                " use one that gives none, or set alpha=0"
            )
        questions = Questions(len(rollout.texts), device)
        answers = self.claims.answers(rollout.texts)
        made = self.claims.claims(answers, questions)
        passages = self.evidence.passages(rollout)
        found = self._verdicts(made, passages, questions)
        phi = [_phi(*each) for each in zip(made, passages, found, strict=True)]
        shown = {"checker_phi": phi, "checker_verdicts": [_shown(each) for each in found]}
        output = replace(
            output,
            log={
                **output.log,
                **questions.log(output.log),
                **_figures(answers, found, phi, device),
            },
            columns={**output.columns, **questions.columns(output.columns), **shown},
        )
        if not self.alpha:
            return output
        factor = 1 + self.alpha * torch.tensor(phi, dtype=torch.float64, device=device)
        return multiplied(output, factor)

    def _verdicts(
        self,
        made: Sequence[Sequence[str] | None],
        passages: Sequence[Sequence[str]],
        questions: Questions,
    ) -> list[list[Held]]:
        """Return the claims of each completion that were held against evidence, with verdicts."""
        claims = [
            Claim(text, "\n".join(evidence), number)
            for number, (texts, evidence) in enumerate(zip(made, passages, strict=True))
            for text in (texts or () if evidence else ())
        ]
        found: list[list[Held]] = [[] for _ in made]
        verdicts = self.scorer.verdicts(claims, questions)
        for claim, verdict in zip(claims, verdicts, strict=True):
            if verdict is not None and verdict.confidence < self.min_confidence:
                verdict = replace(verdict, label="neutral")
            found[claim.completion].append((claim.text, verdict))
        return found


def multiplied(output: RewardOutput, factor: torch.Tensor) -> RewardOutput:
    """Return an output whose scores, and those of steps, are times a factor, ``[B]``."""
    steps = output.steps
    if steps is not None:
        steps = StepScores(steps.ends, (steps.scores * factor.unsqueeze(1)).float())
    return replace(output, scores=(output.scores * factor).float(), steps=steps)


def _phi(made: Sequence[str] | None, passages: Sequence[str], found: Sequence[Held]) -> float:
    """Return phi of a completion; NaN where nothing is known of its claims."""
    if made is None:
        return math.nan
    if made and not passages:
        return WITHOUT_EVIDENCE
    known = [verdict for _, verdict in found if verdict is not None]
    return math.nan if found and not known else support_of(known)


def _figures(
    answers: Sequence[str],
    found: Sequence[Sequence[Held]],
    phi: Sequence[float],
    device: torch.device,
) -> dict[str, float]:
    """Return figures over all data ranks (a collective)."""
    verdicts = [verdict for each in found for _, verdict in each]
    labels = [verdict.label for verdict in verdicts if verdict is not None]
    known = [value for value in phi if not math.isnan(value)]
    sums = [
        *(labels.count(label) for label in LABELS),
        len(verdicts), math.fsum(known), len(known), sum(map(len, answers)), len(phi),
    ]  # fmt: skip
    total = all_rank_sum(torch.tensor(sums, dtype=torch.float64, device=device)).tolist()
    *of_labels, claims, of_phi, with_phi, characters, size = total
    judged = sum(of_labels)
    support, neutral, contradiction = (n / judged if judged else math.nan for n in of_labels)
    return {
        "checker/support": support,
        "checker/neutral": neutral,
        "checker/contradiction": contradiction,
        "checker/unjudged": 1 - judged / claims if claims else math.nan,
        "checker/claims": claims / size,
        "checker/phi": of_phi / with_phi if with_phi else math.nan,
        "checker/answer_length": characters / size,
    }


def _shown(found: Sequence[Held]) -> str:
    """Return a completion's claims with their verdicts, for a table."""
    return "\n".join(
        f"{text}: " + (f"{it.label} {it.confidence:.2f}" if it else "no verdict")
        for text, it in found
    )
