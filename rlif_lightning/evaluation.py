"""Evaluation apart from the rewards: what a policy's samples look like, and, where there are labels, how often right.

Labels are for measuring only; nothing here is seen by a reward or a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torchmetrics import Metric

from rlif_lightning.answers import AnswerExtractor, cluster
from rlif_lightning.batch import Rollout
from rlif_lightning.metrics import AnswerDiversity, MajorityAtK, Mean, PassAtK, TokenEntropy
from rlif_lightning.rewards.controls import is_correct
from rlif_lightning.rewards.voting import majority_answers
from rlif_lightning.rollout.sampling import Sampling


@dataclass(frozen=True)
class Evaluation:
    """How `validate` and `test` measure.

    Args:
        samples: completions drawn for each problem; pass@k and maj@k use all of them.
        sampling: how they are drawn; null = as in training.
        greedy: also decode each problem once without sampling.
        extractor: finds the final answer of a completion.
        gold_extractor: finds it in the gold column (`hash` for GSM8K's worked solutions).
    """

    samples: int = 8
    sampling: Sampling | None = None
    greedy: bool = True
    extractor: AnswerExtractor = field(default_factory=AnswerExtractor)
    gold_extractor: AnswerExtractor = field(default_factory=lambda: AnswerExtractor("text"))

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"evaluation.samples={self.samples} must be at least 1")


class Evaluator(nn.Module):
    """Collects a data set's figures over batches and ranks.

    Args:
        evaluation: how to measure.
    """

    def __init__(self, evaluation: Evaluation):
        super().__init__()
        self.evaluation = evaluation
        k = evaluation.samples
        self.unlabelled = ["entropy", "length", "ended", "parseable", "agreement", "diversity"]
        self.labelled = ["accuracy", f"pass@{k}", f"maj@{k}", *(["greedy_accuracy"] if evaluation.greedy else [])]
        kinds = {"entropy": TokenEntropy(), "diversity": AnswerDiversity(), "accuracy": PassAtK(1)}
        kinds |= {f"pass@{k}": PassAtK(k), f"maj@{k}": MajorityAtK()}
        self.metrics = nn.ModuleDict({name: kinds.get(name) or Mean() for name in self.unlabelled + self.labelled})

    def update(self, rollout: Rollout, gold: Sequence[str] | None, greedy: Rollout | None) -> None:
        """Add one batch.

        Args:
            rollout: ``evaluation.samples`` completions of each problem.
            gold: the P gold columns' values, or None without labels.
            greedy: one greedy completion of each problem, or None.
        """
        answers = [self.evaluation.extractor(text) for text in rollout.texts]
        groups = [answers[i : i + rollout.group_size] for i in range(0, len(answers), rollout.group_size)]
        ids = [cluster(group) for group in groups]
        self._add("entropy", rollout.stats.entropy, rollout.mask)
        self._add("length", rollout.lengths.float())
        self._add("ended", rollout.ended.float())
        self._add("parseable", rollout.mask.new_tensor([answer is not None for answer in answers]))
        self._add("agreement", rollout.stats.entropy.new_tensor([_largest_share(group) for group in ids]))
        self._add("diversity", ids)
        if gold is not None:
            self._update_labelled(answers, rollout, gold, greedy)

    def _add(self, name: str, *values) -> None:
        self._metric(name).update(*values)

    def _metric(self, name: str) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def _update_labelled(
        self, answers: list[str | None], rollout: Rollout, gold: Sequence[str], greedy: Rollout | None
    ) -> None:
        truths = [self.evaluation.gold_extractor(str(value)) for value in gold]
        verdicts = [is_correct(answer, truths[row // rollout.group_size]) for row, answer in enumerate(answers)]
        correct = rollout.mask.new_tensor(verdicts).view(-1, rollout.group_size)
        self._add("accuracy", correct)
        self._add(f"pass@{self.evaluation.samples}", correct)
        majority = majority_answers(answers, rollout.group_size)
        self._add(f"maj@{self.evaluation.samples}", self._verdicts(majority, truths, rollout.mask))
        if greedy is not None:
            decoded = [self.evaluation.extractor(text) for text in greedy.texts]
            self._add("greedy_accuracy", self._verdicts(decoded, truths, rollout.mask))

    @staticmethod
    def _verdicts(answers: Sequence[str | None], truths: Sequence[str | None], like: Tensor) -> Tensor:
        return like.new_tensor([is_correct(answer, truth) for answer, truth in zip(answers, truths, strict=True)])

    def compute(self, labelled: bool) -> dict[str, Tensor]:
        """Figures over all batches and ranks (a collective), then start anew."""
        names = self.unlabelled + self.labelled if labelled else self.unlabelled
        figures = {name: self._metric(name).compute().float() for name in names}
        for name in names:
            self._metric(name).reset()
        return figures


def _largest_share(ids: list[int | None]) -> float:
    """Size of the largest cluster as a share of the samples that have an answer; 0 without any."""
    found = [i for i in ids if i is not None]
    return max(map(found.count, set(found))) / len(found) if found else 0.0
