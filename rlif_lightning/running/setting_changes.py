"""Which settings differ between a checkpoint and the run that resumes from it, and what follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlif_lightning.data.described import ARGUMENTS, CLASS

SEED = "seed_everything"
PROBLEMS = "data.problems"  # how many training problems there are, and a checksum of their tokens
OPTIMIZER, SCHEDULE = "model.optimizer", "model.schedule"
LEARNING_RATE = f"{OPTIMIZER}.{ARGUMENTS}.lr"
GROUPS = f"{OPTIMIZER}.param_groups"  # what a group of parameters has instead of the arguments
PROMPTS_PER_ROLLOUT = "data.prompts_per_rollout"
# What decides which training problems there are, and what only decides their text.
WHICH_PROBLEMS = ("data.source", "data.max_prompt_tokens", "data.overlong")
THEIR_TEXT = ("data.format", "data.prompt_column", "data.tokenizer", "model.policy")
WIDTH = 80  # characters of a value
SHAPES = ("model.policy", "model.rewards", "model.objective")  # a teacher's average has weights
# Name or its beginning -> what happens with a new value; the longest name that fits counts.
APPLIED = {
    "": "taken from here on",
    "data.": "taken from the next rollout on",
    "data.validation_": "taken from the next evaluation on",
    "model.": "taken from the next rollout on",
    "model.evaluation": "taken from the next evaluation on",
    "model.policy.name": "the weights are the checkpoint's; tokenizer and reference model are new",
    "model.rewards.": "taken from the next rollout on; what heads remember is kept",
    SCHEDULE: "the new schedule goes on at the present optimiser step",
    LEARNING_RATE: "taken from the next optimiser step on; what callbacks multiplied it by stays",
    OPTIMIZER: "taken from the next optimiser step on; the optimiser's state is kept",
    "trainer.callbacks": "taken; what callbacks remember is kept",
    "trainer.accelerator": "taken; results round differently",
    "trainer.precision": "taken; results round differently",
    "trainer.strategy": "taken; results round differently",
    "trainer.world_size": "taken; results round differently",
}


class _Absent:
    def __repr__(self) -> str:
        return "not there"


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """One setting that differs.

    Attributes:
        name: in YAML.
        old: in the checkpoint.
        new: in the run that goes on from it.
    """

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = self.shown()
        return f"{self.name}: {old} -> {new}"

    def shown(self) -> tuple[str, str]:
        """Return both values in one short line each, long ones from where they differ."""
        texts = [as_text(value) for value in (self.old, self.new)]
        pairs = enumerate(zip(*texts, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(map(len, texts)))
        start = max(same - 20, 0) if max(map(len, texts)) > WIDTH else 0
        old, new = (("..." if start else "") + _cut(text[start:]) for text in texts)
        return old, new

    def begins_with(self, names: Iterable[str]) -> bool:
        """Return whether the setting is one of these or stands below one."""
        return any(self.name == name or self.name.startswith(f"{name}.") for name in names)


def as_text(value: Any) -> str:
    """Return a value in one line, much as YAML has it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = value if isinstance(value, str) else repr(value).replace("'", "")
    return " ".join(text.split()) or "''"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return what differs, each setting once; the arguments of another class are not listed."""
    names = list(dict.fromkeys([*old, *new]))
    found = [
        Change(name, old.get(name, ABSENT), new.get(name, ABSENT))
        for name in names
        if name != PROBLEMS and not _is_same(old.get(name, ABSENT), new.get(name, ABSENT))
    ]
    differing = {change.name for change in found}
    kept = [change for change in found if not _is_covered(change, differing)]
    return [
        Change(change.name, _whole(change, old), _whole(change, new, is_new=True))
        for change in kept
    ]


def _is_same(old: Any, new: Any) -> bool:
    return old == new or repr(old) == repr(new)  # NaN is not equal to itself


def _is_covered(change: Change, differing: set[str]) -> bool:
    """Return whether another change says it: of the class, or of what one side has not."""
    is_on_one_side = ABSENT in (change.old, change.new)
    parts = change.name.split(".")
    for end in range(1, len(parts)):
        above = ".".join(parts[:end])
        if parts[end] == ARGUMENTS and f"{above}.{CLASS}" in differing:
            return True
        if is_on_one_side and above in differing:
            return True
    return False


def _whole(change: Change, settings: dict[str, Any], is_new: bool = False) -> Any:
    """Return the value on one side; of a setting that is a record there, the whole record."""
    value = change.new if is_new else change.old
    if value is not ABSENT:
        return value
    below = f"{change.name}."
    record = {
        name.removeprefix(below): each for name, each in settings.items() if name.startswith(below)
    }
    return record or value


def refused_changes(
    found: list[Change], old: dict[str, Any], new: dict[str, Any], is_misfit: bool
) -> list[Change]:
    """Return the changes with which training cannot go on from a checkpoint.

    Args:
        found: all changes.
        old: settings of the checkpoint.
        new: settings of the run.
        is_misfit: whether the checkpoint's weights and buffers are others than the model's.
    """
    refused = [change for change in found if _is_refused(change)]
    refused += [change for change in found if is_misfit and change.begins_with(SHAPES)]
    before, now = old.get(PROBLEMS), new.get(PROBLEMS)
    if None not in (before, now) and before != now:
        refused += _that_change_the_problems(found, before, now)
    return list({change.name: change for change in refused}.values())


def _is_refused(change: Change) -> bool:
    if change.name in (SEED, "model.seed", "data.seed"):
        return True
    if change.name == "model.rewards":
        return not (_is_list(change) and sorted(change.old) == sorted(change.new))
    if change.name.startswith(f"{OPTIMIZER}.") or change.name == OPTIMIZER:
        # An optimiser that had no momentum has no state of it, which some classes never make.
        is_new_state = change.name.endswith(".momentum") and not change.old
        return is_new_state or not (is_numbers(change.old) and is_numbers(change.new))
    return False


def _is_list(change: Change) -> bool:
    return isinstance(change.old, list) and isinstance(change.new, list)


def group_rate(settings: dict[str, Any], number: int) -> Any:
    """Return the learning rate that a group of parameters was given; None if it is not known."""
    return settings.get(f"{GROUPS}.{number}.lr", settings.get(LEARNING_RATE))


def is_numbers(value: Any) -> bool:
    """Return whether a value is a number or a list of numbers, such as betas."""
    if isinstance(value, list):
        return all(map(is_numbers, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _that_change_the_problems(found: list[Change], old: Any, new: Any) -> list[Change]:
    """Return the changes that make other problems, whose order cannot be continued."""
    which = [change for change in found if change.begins_with(WHICH_PROBLEMS)]
    text = [change for change in found if change.begins_with(THEIR_TEXT)]
    if not which and text and old[0] == new[0]:
        return []
    return which or text or [Change(PROBLEMS, *map(_counted, (old, new)))]


def _counted(problems: list[int]) -> str:
    return f"{problems[0]} training problems with the checksum {problems[1]:08x}"


def refusal(found: list[Change], checkpoint: Any) -> str:
    """Return what a run cannot go on with, in one line, and the way out."""
    listed = "; ".join(map(str, found))
    before = "set it as before" if len(found) == 1 else "set them as before"
    return (
        f"a run cannot go on from it with other settings ({listed}); {before}, or begin a new run"
        f" with its weights: fork_from={checkpoint} instead of ckpt_path"
    )


def outcome(change: Change) -> str:
    """Return what happens with a setting that is applied."""
    fitting = [name for name in APPLIED if change.name.startswith(name)]
    return APPLIED[max(fitting, key=len)]
