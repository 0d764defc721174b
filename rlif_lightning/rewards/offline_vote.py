"""``OfflineVote``: labels that a frozen policy voted for before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlif_lightning.answers.clusters import ComparesAnswers, equivalent
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.local_files import open_files
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.voting import majority_answers

_FORMATS = {"jsonl": "json", "parquet": "parquet"}
_READ = ["index", "completion_number", "prompt", "completion"]


class OfflineVote(ComparesAnswers, RewardHead):
    """Scores 1 where the final answer is that which the start policy's completions voted for.

    The label of a problem is the answer of the largest cluster of its completions in a folder that
    ``predict`` wrote. It never changes, so that a vote cannot confirm itself. It comes from a
    policy's samples alone and is no gold answer: the head reads no column of the data set, and a
    run with it is label-free. NaN for a problem none of whose completions has an answer.

    Source of the control: https://arxiv.org/abs/2505.21444.

    Args:
        predictions: the folder, or one of its files. Its problems have the numbers and the prompts
            of the training split (``TrainingProblems``).
        extractor: finds the final answer of a completion, here and there.
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`clusters.equivalent`).

    Raises:
        ValueError: an unknown equivalence.
    """

    def __init__(
        self,
        predictions: str,
        extractor: AnswerExtractor = AnswerExtractor(),
        equivalence: str = "exact",
    ):
        RewardHead.__init__(self)
        ComparesAnswers.__init__(self, extractor, equivalence)
        self.predictions = predictions
        self._labels: dict[int, tuple[str, str | None]] = {}

    @property
    def labels(self) -> dict[int, tuple[str, str | None]]:
        """The prompt and the label of each problem, by its number; read when first needed.

        Raises:
            ValueError: there are no such files, or they are none of ``predict``.
        """
        if not self._labels:
            self._labels = labels_of(predicted(self.predictions), self.extractor, self.equivalence)
        return self._labels

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse training problems that the predictions have not.

        Raises:
            ValueError: names the first of them.
        """
        missing = [row for row in problems.rows.tolist() if row not in self.labels]
        if missing:
            raise ValueError(
                f"predictions={self.predictions!r} has no completion of {len(missing)} training"
                f" problems, such as number {missing[0]}; predict on the same training split, with"
                " the source TrainingProblems"
            )

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions 0 or 1, float32.

        Raises:
            ValueError: a problem has another prompt than in the predictions.
        """
        scores = []
        rows, prompts = rollout.prompts.index.tolist(), rollout.prompts.texts
        for number, text in enumerate(rollout.texts):
            problem = number // rollout.group_size
            label = self._label(rows[problem], prompts[problem])
            answer = None if label is None else self.extractor(text)
            agrees = answer is not None and equivalent(answer, str(label), self.equivalence)
            scores.append(float("nan") if label is None else float(agrees))
        return RewardOutput(torch.tensor(scores, dtype=torch.float32, device=rollout.mask.device))

    def _label(self, row: int, prompt: str) -> str | None:
        known = self.labels.get(row)
        if known is None or known[0] != prompt:
            there = "nothing" if known is None else repr(known[0][:100])
            raise ValueError(
                f"problem {row} has the prompt {prompt[:100]!r}, and in predictions="
                f"{self.predictions!r} {there}; predict on the same training split, with the same"
                " prompt format"
            )
        return known[1]


def predicted(place: str) -> list[dict[str, Any]]:
    """Return what ``predict`` wrote into a folder or a file: a row for each completion.

    Raises:
        ValueError: there is nothing of it, or a part, or something else, such as what a training
            run wrote.
    """
    path = Path(place).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("completions-*"))
    kinds = {file.suffix.removeprefix(".") for file in files}
    if len(kinds) != 1 or not kinds <= set(_FORMATS):
        raise ValueError(
            f"predictions={place!r} is no folder with files completions-*.jsonl or *.parquet, and"
            " no such file; give the folder that predict wrote"
        )
    rows = open_files(_FORMATS[kinds.pop()], files)
    if missing := sorted(set(_READ) - set(rows.column_names)):
        raise ValueError(f"predictions={place!r} has no column {missing[0]!r}; predict wrote it")
    if "advantage" in rows.column_names:  # CompletionWriter's, of a policy that was being trained
        raise ValueError(
            f"predictions={place!r} was written by a training run; give the folder that predict"
            " wrote with the start policy"
        )
    sizes = Counter(rows["index"])
    if few := [index for index, size in sizes.items() if size < max(sizes.values())]:
        raise ValueError(
            f"predictions={place!r} has {sizes[few[0]]} completions of problem {few[0]} and"
            f" {max(sizes.values())} of others; run predict again with the same settings, and it"
            " goes on where it was ended"
        )
    return rows.select_columns(_READ).to_list()


def labels_of(
    rows: Sequence[dict[str, Any]], extractor: AnswerExtractor, equivalence: str = "exact"
) -> dict[int, tuple[str, str | None]]:
    """Return each problem's prompt and the answer that most of its completions agree on.

    It is normalised. Of two clusters of one size that with the most frequent string counts, then
    the alphabetically first. Without any answer the label is None.

    Args:
        rows: of :func:`predicted`.
        extractor: finds the answers.
        equivalence: when two are equal.

    Example:
        >>> texts = ["1+1=2", "=2.0", "=3", "?"]
        >>> rows = [{"index": 7, "prompt": "1+1", "completion": text} for text in texts]
        >>> labels_of(rows, AnswerExtractor("last_number"))
        {7: ('1+1', '2')}
    """
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(int(row["index"]), []).append(row)
    found = {}
    for index, group in sorted(groups.items()):
        answers = [extractor(row["completion"]) for row in group]
        (label,) = majority_answers(answers, len(answers), equivalence)
        found[index] = (str(group[0]["prompt"]), label)
    return found
