"""Feedback: what a teacher reads about a completion, and the prompt that shows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.learning.teacher import CALLBACK, SIBLING, Teacher
from rlif_lightning.processes.collectives import object_from_first
from rlif_lightning.records import RewardOutput, Rollout

SUCCESS = 0.5  # least score of a completion that siblings may read


class FeedbackWriter(ABC):
    """Writes feedback for `teacher.feedback: callback`; a callback inherits from it as well.

    Attributes:
        needs_gold: whether it reads the gold answers; it then sees every column.
        columns: the columns that one without ``needs_gold`` reads, as dotted paths.
    """

    needs_gold: bool = False
    columns: Sequence[str] = ()

    @abstractmethod
    def feedback(
        self, rollout: Rollout, outputs: Mapping[str, RewardOutput]
    ) -> Sequence[str | None]:
        """Return B texts; None or an empty text = the completion has no loss.

        Args:
            rollout: with the columns that it may see.
            outputs: of the reward heads; without ``needs_gold``, of those without it.
        """


class OutputsWithoutGold(dict[str, RewardOutput]):
    """The outputs of heads that read no gold answers; asking for another one is an error."""

    def __missing__(self, name: str) -> RewardOutput:
        raise ValueError(
            f"outputs[{name!r}]: this reward reads gold answers, or is none of the run, so a"
            " FeedbackWriter without needs_gold may not see what it says; set needs_gold = True on"
            " the class and model.objective.teacher.needs_gold=true"
        )


def feedback_texts(
    teacher: Teacher,
    rollout: Rollout,
    outputs: Mapping[str, RewardOutput],
    weighted: str | None,
    writer: FeedbackWriter | None,
) -> list[str | None]:
    """Return the feedback on each of B completions; None where there is none (a collective).

    Processes that share completions take the first one's: a writer may have a limit of time.

    Args:
        teacher: says where it comes from.
        rollout: of the completions.
        outputs: of the reward heads.
        weighted: the reward whose score says which siblings are right.
        writer: the run's writer.

    Raises:
        ValueError: the writer returned another number of texts, or something else.
    """
    if teacher.feedback == SIBLING:
        assert weighted is not None
        return right_siblings(outputs[weighted].scores, rollout.texts, rollout.group_size)
    if teacher.feedback != CALLBACK:
        return [_text(value) for value in rollout.column(teacher.feedback)]
    assert writer is not None
    visible = rollout
    if not writer.needs_gold:
        visible = replace(rollout, prompts=rollout.prompts.only(writer.columns))
    texts = list(writer.feedback(visible, outputs))
    if len(texts) != len(rollout.texts) or not all(t is None or isinstance(t, str) for t in texts):
        raise ValueError(
            f"{type(writer).__name__}.feedback returned {texts!r:.200}; a text or None for each of"
            f" {len(rollout.texts)} completions is needed"
        )
    return object_from_first([text or None for text in texts])


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value)
    return text or None


def right_siblings(scores: Tensor, texts: Sequence[str], group_size: int) -> list[str | None]:
    """Return the text of the next right completion of the group, cyclically, but never one's own.

    For example, with the scores (1, 0, 1) the siblings are 2, 2 and 0.

    Args:
        scores: ``[B]``; a completion is right from 0.5 on; NaN is not.
        texts: of B completions.
        group_size: G.
    """
    is_right, found = (scores >= SUCCESS).tolist(), []
    for row in range(len(texts)):
        first = row - row % group_size
        others = [first + (row - first + step) % group_size for step in range(1, group_size)]
        sibling = next((other for other in others if is_right[other]), None)
        found.append(None if sibling is None else texts[sibling] or None)
    return found


def feedback_prompts(
    rollout: Rollout, texts: Sequence[str | None], template: str, split: EncodedSplit
) -> list[Tensor | None]:
    """Return the token ids ``[L]`` of the teacher's prompt for each of B completions.

    Args:
        rollout: of the completions, with all columns of its problems.
        texts: the feedback on each; None = no prompt.
        template: of the problem with the feedback.
        split: renders and tokenises problems.
    """
    columns, size = rollout.prompts.columns, rollout.group_size
    known = [row for row, text in enumerate(texts) if text is not None]
    rendered = [
        split.render(
            {name: values[row // size] for name, values in columns.items()},
            lambda prompt, row=row: template.format(prompt=prompt, feedback=texts[row]),
        )
        for row in known
    ]
    prompts: list[Tensor | None] = [None] * len(texts)
    for row, ids in zip(known, split.encode(rendered) if known else [], strict=True):
        prompts[row] = torch.from_numpy(ids).long().to(rollout.mask.device)
    return prompts
