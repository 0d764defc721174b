"""Gold answers: they can be read, nothing shows them that may not, and who used them in a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.columns import check_column, column_values, has_column
from rlif_lightning.data.curriculum import Curriculum
from rlif_lightning.data.mixed_sources import EasyFirst
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.records import overlap
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.environment import EnvironmentReward
from rlif_lightning.rewards.function import GOLD_NAMES
from rlif_lightning.rewards.held_head import heads_behind, heads_in
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.setting_types import imported

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


def label_uses(module: Any, monitor: str | None = None, callbacks: Iterable[Any] = ()) -> list[str]:
    """Return how gold answers reached the weights of a run, one line each; none = label-free.

    Read are reward heads with their gates, judges' templates, dynamic sampling, the teacher, texts
    that are trained on, curricula, and the figures by which policy, or the run's end, was chosen.
    What the starting weights were trained on is not known here. A column counts as gold also by its
    name alone.

    Args:
        module: the ``RLIFModule``, as it is now: callbacks may have changed weights.
        monitor: the figure by which the policy was chosen; None = by none.
        callbacks: those of the trainer; any ``EarlyStopping`` among them counts, and any guard
            that acts.
    """
    found = [line for name in module.rewards.names for line in _uses_of_reward(module, name)]
    draws = module.dynamic_sampling
    for name in () if draws is None or draws.heads is None else draws.deciding(module.rewards):
        head = module.rewards.settings[name].head
        if sees_gold(head):
            found.append(f"dynamic sampling keeps groups by `{name}` ({type(head).__name__})")
    teacher = module.objective.teacher
    if teacher is not None and teacher.needs_gold:
        found.append("the teacher's feedback shows gold answers")
    if (column := module.objective.column) is not None:
        found.append(f"the policy is trained on the texts of the column `{column}`")
    found += _uses_of_order(module)
    if needs_labels(monitor, module):
        found.append(f"this policy was chosen by `{monitor}`, which needs gold answers")
    for callback in callbacks:
        is_end = isinstance(callback, EarlyStopping)
        figures = [callback.monitor] if is_end else getattr(callback, "acts_by", ())  # of a guard
        does = f"{type(callback).__name__} {'ends the run' if is_end else 'acts'} by"
        told = [
            f"{does} `{it}`, which needs gold answers" for it in figures if needs_labels(it, module)
        ]
        found += told
    return found


def environment_uses(module: Any) -> list[str]:
    """Return the gold columns that a run's environment is given, one line each.

    What an environment says is what the policy reads, whatever pays for its episodes. Given are all
    columns to a ``reset(**row)``, or those that it names. Of a function's environment nothing is
    known before it is made, and all count.
    """
    data: Any = getattr(module._trainer, "datamodule", None)
    environment = getattr(data, "environment", None)
    split = None if environment is None else data.split("train")
    if split is None or environment is None:
        return []
    gold = [name for name in split.dataset.features if holds_gold(name, module.rewards)]
    begin: Any = getattr(imported(environment.make, "data.environment.make"), "reset", None)
    if begin is not None:
        parameters = inspect.signature(begin).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            gold = [name for name in gold if name in parameters]
    said = f"data.environment.make={environment.make!r} is given the column"
    return [f"{said} `{name}` of gold answers, and may show it" for name in gold]


def _uses_of_order(module: Any) -> list[str]:
    data = getattr(module._trainer, "datamodule", None)  # `trainer` raises where there is none
    source = getattr(data, "source", None)
    if isinstance(source, Curriculum) and sees_gold(module.rewards.settings[source.reward].head):
        return [f"problems are ordered by `{source.reward}`, which reads gold answers"]
    if isinstance(source, EasyFirst) and holds_gold(source.column, module.rewards):
        return [f"problems are ordered by the column `{source.column}` of gold answers"]
    return []


def _uses_of_reward(module: Any, name: str) -> list[str]:
    settings = module.rewards.settings[name]
    head, kind = settings.head, f"{type(settings.head).__name__}, weight {settings.weight:g}"
    if sees_gold(head) and not head.needs_gold and settings.weight:
        return [f"reward `{name}` ({kind}) is an environment's, which sees every column"]
    if head.needs_gold and settings.weight:
        return [f"reward `{name}` ({kind}) reads gold answers"]
    if head.needs_gold:
        drops = f"reward `{name}` ({kind}) reads gold answers and may drop completions"
        return [drops] if _may_drop(head) else []
    if not settings.weight and not _may_drop(head):
        return []
    shown = [each for each in head.columns if _is_named_gold(each)]
    found = [
        f"reward `{name}` ({type(head).__name__}) is shown the column `{column}`, which by its name"
        " holds gold answers"
        for column in shown
    ]
    gate = settings.gate
    if gate is not None and sees_gold(gating := module.rewards.settings[gate.head].head):
        found.append(f"the gate of reward `{name}` reads `{gate.head}` ({type(gating).__name__})")
    return found


def sees_gold(head: RewardHead) -> bool:
    """Return whether a head's score may depend on gold answers: an environment sees them too."""
    return head.needs_gold or any(isinstance(each, EnvironmentReward) for each in heads_in(head))


def holds_gold(column: str, rewards: RewardSet) -> bool:
    """Return whether a column is known to hold gold answers, or is named as one that does."""
    return _is_named_gold(column) or any(overlap(column, gold) for gold in rewards.gold_columns)


def _is_named_gold(column: str) -> bool:
    return column.rpartition(".")[2] in GOLD_NAMES


def _may_drop(head: RewardHead) -> bool:
    """Return whether a head can take completions out of the update, whatever its weight."""
    parsers = [getattr(each, "parser", None) for each in heads_behind(head)]
    drops = any(getattr(parser, "unparsed", None) == "drop" for parser in parsers)
    return drops or not head.gives_scores


def needs_labels(figure: str | None, module: Any) -> bool:
    """Return whether a logged figure is measured with gold answers.

    Args:
        figure: its name, such as ``val/accuracy``; None is no figure.
        module: whose evaluator and rewards know.
    """
    stage, _, rest = (figure or "").partition("/")
    if stage == "reward":
        reward = module.rewards.settings.get(rest.partition("/")[0])
        return reward is not None and sees_gold(reward.head)
    if (logger := module.rewards.loggers.get(figure)) is not None:
        return sees_gold(module.rewards.settings[logger].head)
    is_evaluation = stage.partition("_")[0] in ("val", "test")
    measured = [*module.evaluator.labelled, "solved", "reward"]  # an environment's pay too
    return stage in ("overclaim", "environment") or (is_evaluation and rest in measured)
