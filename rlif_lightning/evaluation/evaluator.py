"""Evaluation apart from the rewards: figures of a policy's samples and, with labels, accuracy.

Labels are for measuring only; nothing here is seen by a reward or a gradient. Read `Evaluation`
(the settings), `Evaluator` (collects over batches and processes). What comes out: ``report.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlif_lightning.answers.checkers import AnswerChecker, Checker
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.evaluation.completion_rows import completion_records
from rlif_lightning.evaluation.metrics import (
    AnswerDiversity,
    Labels,
    MajorityAtK,
    Mean,
    PassAtK,
    ProblemMetric,
    TokenEntropy,
)
from rlif_lightning.evaluation.report import Report
from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.sampling import VALIDATION_STEP, Sampling
from rlif_lightning.setting_types import check_types


@dataclass(frozen=True)
class Evaluation:
    """How `validate` and `test` measure.

    Args:
        samples: completions drawn for each problem; maj@k uses all of them.
        sampling: how they are drawn; null = as in training. What is left out of it has the usual
            default (128 new tokens, no stop strings), and not what training has.
        greedy: also decode each problem once without sampling.
        checker: finds answers and judges them; null = AnswerChecker with its defaults. Extractors
            and equivalence are its settings.
        pass_at: further k of pass@k, each below `samples`; k = 1 (accuracy) and k = samples are
            always there.
        subset_column: a column such as level or subject, or a dotted path; every figure is also
            given for each of its values.
        save_completions: write every completion with its verdict into the run's folder.

    Raises:
        ValueError: a number out of range.
    """

    samples: int = 8
    sampling: Sampling | None = None
    greedy: bool = True
    checker: Checker | None = None
    pass_at: Sequence[int] = ()
    subset_column: str | None = None
    save_completions: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.samples < 1:
            raise ValueError(f"evaluation.samples={self.samples} must be at least 1")
        if not all(1 < k < self.samples for k in self.pass_at):
            raise ValueError(
                f"evaluation.pass_at={list(self.pass_at)}: each k must lie between 1 and"
                f" samples={self.samples},"
                " which are always there"
            )


class Evaluator(nn.Module):
    """Collects a data set's figures over batches and processes.

    Args:
        evaluation: how to measure.

    Attributes:
        has_episodes: whether the figures of episodes are given too.
    """

    def __init__(self, evaluation: Evaluation):
        super().__init__()
        self.evaluation = evaluation
        self.checked: EncodedSplit | None = None
        self.checker: Checker = evaluation.checker or AnswerChecker()
        k = evaluation.samples
        unlabelled = {
            "entropy": TokenEntropy(),
            "length": Mean(),
            "ended": Mean(share=True),
            "parseable": Mean(share=True),
            "agreement": Mean(share=True),
            "diversity": AnswerDiversity(),
        }
        acting = {"turns": Mean(), "solved": Mean(share=True), "reward": Mean()}
        labelled: dict[str, ProblemMetric] = {"accuracy": PassAtK(1)}
        labelled |= {f"pass@{each}": PassAtK(each) for each in [*evaluation.pass_at, k]}
        labelled |= {f"maj@{k}": MajorityAtK()}
        if evaluation.greedy:
            labelled["greedy_accuracy"] = Mean(share=True)
        self.unlabelled, self.labelled = list(unlabelled), list(labelled)
        self.acting, self.has_episodes = list(acting), False
        self.metrics = nn.ModuleDict(unlabelled | acting | labelled)
        self.labels = Labels()

    def measure(
        self, prompts: Prompts, engine: RolloutEngine, sampling: Sampling, answer_column: str | None
    ) -> list[dict[str, Any]]:
        """Sample a batch, decode it greedily where there are labels, and add both.

        Args:
            prompts: the batch.
            engine: draws the completions.
            sampling: as in training, used unless the evaluation has its own.
            answer_column: of the gold answers, or None.

        Returns:
            One record per completion, with its answer and verdict.
        """
        sampling = self.evaluation.sampling or sampling
        rollout = engine.generate(prompts, self.evaluation.samples, sampling, VALIDATION_STEP)
        greedy = None
        if answer_column is not None and self.evaluation.greedy:
            settings = replace(sampling, temperature=0, top_k=0, top_p=1.0, train_stop=False)
            greedy = engine.generate(prompts, 1, settings, VALIDATION_STEP)
        return self.update(rollout, answer_column, greedy)

    def check_problems(self, problems: EncodedSplit, answer_column: str) -> None:
        """Refuse problems whose tests or literals the checker cannot use.

        Raises:
            ValueError: names what is wrong with one.
        """
        if problems is self.checked or isinstance(
            self.checker, AnswerChecker
        ):  # (``label_checks.py`` reads answers)
            return
        for _, problem in problems.problems():  # one by one: the tests of code can be large
            self.checker.correct([None], [problem], answer_column)
        self.checked = problems  # every stage has a setup

    def update(
        self, rollout: Rollout, answer_column: str | None, greedy: Rollout | None
    ) -> list[dict[str, Any]]:
        """Add one batch.

        Args:
            rollout: ``evaluation.samples`` completions of each problem.
            answer_column: of the gold answers, or None without labels.
            greedy: one greedy completion of each problem, or None.

        Returns:
            One record per completion, with its answer and verdict (null without labels).
        """
        answers = [self.checker.answer(text) for text in rollout.texts]
        size = rollout.group_size
        clusters: list[tuple[Any, Any]] = [
            self.checker.cluster(answers[start : start + size])
            for start in range(0, len(answers), size)
        ]
        self._update_unlabelled(rollout, answers, [ids for ids, _ in clusters])
        if self.evaluation.subset_column is not None:
            labels = [str(value) for value in rollout.prompts.column(self.evaluation.subset_column)]
            self.labels.update(labels, rollout.prompts.index)
        if answer_column is None:
            return self._records(rollout, "sample", answers, None)
        correct = self._verdicts(answers, rollout, answer_column)
        records = self._records(rollout, "sample", answers, correct)
        index, verdicts = rollout.prompts.index, rollout.mask.new_tensor(correct).view(-1, size)
        for name in self.labelled:
            if name == "accuracy" or name.startswith("pass@"):
                self._metric(name).update(verdicts, index)
        winners = [_majority(ids, representatives) for ids, representatives in clusters]
        voted = self._verdicts(winners, rollout, answer_column)
        self._metric(f"maj@{self.evaluation.samples}").update(rollout.mask.new_tensor(voted), index)
        if greedy is not None:
            decoded = [self.checker.answer(text) for text in greedy.texts]
            right = self._verdicts(decoded, greedy, answer_column)
            self._metric("greedy_accuracy").update(rollout.mask.new_tensor(right), index)
            records += self._records(greedy, "greedy", decoded, right)
        return records

    def _update_unlabelled(
        self, rollout: Rollout, answers: list[str | None], ids: list[list[int | None]]
    ) -> None:
        index, size = rollout.prompts.index, rollout.group_size
        found = rollout.mask.new_tensor([answer is not None for answer in answers])
        self._metric("entropy").update(rollout.stats.entropy, rollout.mask, index)
        self._metric("length").update(rollout.lengths.view(-1, size), index)
        self._metric("ended").update(rollout.ended.view(-1, size), index)
        self._metric("parseable").update(found.view(-1, size), index)
        agreement = torch.tensor([_largest_share(group) for group in ids], device=index.device)
        self._metric("agreement").update(agreement, index)
        self._metric("diversity").update(ids, index)
        if rollout.episodes is not None:
            episodes = torch.tensor(
                [[len(e.turns), float(e.is_solved), e.reward] for e in rollout.episodes],
                device=index.device,
            )
            for name, values in zip(self.acting, episodes.unbind(1), strict=True):
                self._metric(name).update(values.view(-1, size), index)

    def _metric(self, name: str) -> ProblemMetric:
        metric = self.metrics[name]
        assert isinstance(metric, ProblemMetric)
        return metric

    def _verdicts(
        self, answers: Sequence[str | None], rollout: Rollout, answer_column: str
    ) -> list[bool]:
        """Return the verdicts on P or B answers."""
        rows, repeats = rollout.prompts.rows(answer_column), len(answers) // rollout.num_prompts
        return self.checker.correct(
            answers, [row for row in rows for _ in range(repeats)], answer_column
        )

    def _records(
        self,
        rollout: Rollout,
        kind: str,
        answers: Sequence[str | None],
        correct: Sequence[bool] | None,
    ) -> list[dict[str, Any]]:
        subset = self.evaluation.subset_column
        labels = rollout.column(subset) if subset is not None else [None] * len(answers)
        records = completion_records(rollout)
        for row, record in enumerate(records):
            record |= {
                "kind": kind,
                "answer": answers[row],
                "correct": None if correct is None else correct[row],
            }
            record |= {"subset": None if labels[row] is None else str(labels[row])}
        return records

    def reset(self) -> None:
        """Drop all problems."""
        for metric in (*map(self._metric, self.metrics), self.labels):
            metric.reset()

    def figures(self, labelled: bool) -> list[str]:
        """Return the names of the figures of an evaluation, with or without labels."""
        return self.unlabelled + self.acting * self.has_episodes + self.labelled * labelled

    def compute(self, labelled: bool) -> Report:
        """Return the figures over all batches and processes (a collective), and start anew."""
        names = self.figures(labelled)
        metrics = [self._metric(name) for name in names]
        tables = (
            broadcast_from_first(torch.stack([metric.table() for metric in metrics], 2))
            .cpu()
            .numpy()
        )
        shares = np.array([metric.share for metric in metrics])
        label_of = self.labels.compute() if self.evaluation.subset_column is not None else []
        self.reset()
        subsets = {}
        for label in sorted(set(label_of)):
            rows = np.array([each == label for each in label_of])
            subsets[label] = Report(names, tables[rows, 1], tables[rows, 2], shares)
        return Report(names, tables[:, 1], tables[:, 2], shares, subsets)


def _largest_share(ids: list[int | None]) -> float:
    """Return the largest cluster's share of the samples that have an answer; 0 without any."""
    found = [i for i in ids if i is not None]
    return max(map(found.count, set(found))) / len(found) if found else 0.0


def _majority(ids: list[int | None], representatives: list[str]) -> str | None:
    """Return the answer of the largest cluster, the first of equal ones; None without answers."""
    sizes = Counter(i for i in ids if i is not None)
    return representatives[max(sizes, key=lambda i: (sizes[i], -i))] if sizes else None
