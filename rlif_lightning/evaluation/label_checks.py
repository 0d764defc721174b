"""Checks in setup: the gold answers can be used, and nothing shows them that may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.columns import check_column, column_values, has_column
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.rewards.reward_set import RewardSet

if TYPE_CHECKING:
    from rlif_lightning.evaluation.evaluator import Evaluator


def check_labels(data: Any, evaluator: Evaluator, rewards: RewardSet, stage: str) -> None:
    """Check the loaded splits with the checker and every head that reads gold answers.

    A doubt that a run can go on with is printed once, in one line for each column.

    Args:
        data: the data module; nothing is checked unless it is a `PromptData`.
        evaluator: its checker reads ``data.answer_column``.
        rewards: heads read columns of their own.
        stage: fit | validate | test | predict. Heads read the train split, and what is predicted
            for.

    Raises:
        ValueError: names the column, and the row where it is one row's fault.
    """
    if not isinstance(data, PromptData):
        return
    subset = evaluator.evaluation.subset_column
    for name, split in data.loaded_splits(stage).items():
        if subset is not None and name == "validation" and stage != "predict":
            check_column(
                f"evaluation.subset_column={subset!r}", subset, split.dataset, f"the {name} split"
            )
        for column, reader in _readers(name, stage, evaluator, rewards):
            where = f"the {name} split"
            is_optional = column in getattr(reader, "optional", ())
            if is_optional and not has_column(split.dataset.features, column):
                continue
            check_column(f"the gold answers' column {column!r}", column, split.dataset, where)
            data.format.refuse_to_show(data.prompt_column, column)
            told = reader.check_gold(
                column, column_values(split.dataset, column, split.rows.tolist()), where
            )
            if told is not None and told not in data.told:
                data.told.add(told)
                rank_zero_info(told)


def _readers(
    split: str, stage: str, evaluator: Evaluator, rewards: RewardSet
) -> list[tuple[str, Any]]:
    """Return the gold columns that are read of a split with their readers, equal ones once."""
    readers: dict[Any, tuple[str, Any]] = {}
    if (column := rewards.answer_column) is not None and stage != "predict":
        readers[column, getattr(evaluator.checker, "gold", None)] = (column, evaluator.checker)
    for reward in rewards.settings.values() if split == "train" or stage == "predict" else ():
        for column in reward.head.gold_columns:
            readers.setdefault(
                (column, getattr(reward.head, "gold", reward.head)), (column, reward.head)
            )
    return list(readers.values())
