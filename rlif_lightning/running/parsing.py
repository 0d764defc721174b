"""The command line's parser: settings that come in kinds, and former names of settings.

Importing this file sets jsonargparse's handling of advantages and objectives for the process.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse import _loaders_dumpers as loaders
from jsonargparse import _typehints as type_hints
from lightning.pytorch.cli import LightningArgumentParser

from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.learning.advantages import Advantage
from rlif_lightning.learning.objective_base import BoundedObjective, Objective
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.running.close_names import imported, meant
from rlif_lightning.running.config_files import check_config
from rlif_lightning.running.former_settings import ARGUMENTS_OF
from rlif_lightning.running.help_page import arrange
from rlif_lightning.running.setting_owners import owner_hint

# Former name of a setting -> its present one.
RENAMED = {
    "model.learning_rate": "model.optimizer.lr",
    "model.weight_decay": "model.optimizer.weight_decay",
    "model.betas": "model.optimizer.betas",
    "model.lr_schedule": "model.schedule.name",
    "model.warmup_steps": "model.schedule.warmup_steps",
    "model.schedule_steps": "model.schedule.steps",
    **{f"model.{each.name}": f"model.update.{each.name}" for each in fields(UpdatePlan)},
    **{f"data.{each.name}": f"data.format.{each.name}" for each in fields(PromptFormat)},
    "data.prompts_per_step": "data.prompts_per_rollout",
    "data.validation_prompts_per_step": "data.validation_prompts_per_batch",
    "optimizer": "model.optimizer",
    "lr_scheduler": "model.schedule",
    **{f"model.evaluation.{name}": now for name, now in ARGUMENTS_OF["Evaluation"].items()},
    "predictions.rows_per_file": "the constant 4096",
}
# jsonargparse names an unknown setting of a file within its group.
_IN_GROUP = re.compile(r"(Group '([\w.]+)' does not accept option ')(?!\2\.)")
_NAME = re.compile(r"(?<![\w.])[a-z_]+(?:\.[a-z_]+)*")
_ARGUMENT = re.compile(r"Option '(?:[\w.]+\.)?(\w+)' is not accepted")
# Lines in which jsonargparse names its own types; no user can act on them.
_OF_TYPES = re.compile(
    r"\s*((- )?Does not validate against any of the Union subtypes|Subtypes: |Errors:$"
    r"|- Expected a <class 'NoneType'>|- Expected a path but .* either not accessible or invalid$"
    r"|Given value type: |Given value: (NestedArg\(|Namespace\(|\{)"
    r"|- Import path rlif_lightning\.WeightedReward does not"
    r"|(- )?(Not a valid subclass of|Subclass types expect one of:)|- a (class path|dict) )"
)
# A list of callbacks is tried as one callback too, and its mistake is told once more.
_ONE_CALLBACK = re.compile(
    r"\n +- Problem with given class_path 'lightning\.Callback':"
    r"(\n +Option '[\w.]+' is not accepted)?"
)
_PLACE = re.compile(r'Parser key "([\w.]+)":')
_CLASS_AT = re.compile(r"Problem with given class_path '([\w.]+)':")
# The value once more, and that a reward may be given as a head alone, which this one is not.
_GIVEN = re.compile(
    r"(?<=import path); Given value: \w+$|; Expected an instantiatable class, but rlif_l.*"
)
_COMPUTED = re.compile(r"argument (?:\w+\()?([\w.]+)\)? --> ([\w.]+): .* is not callable")
# A class to be called later, such as the optimiser, and numbers that may be tensors.
_CALLED = re.compile(
    r"Type typing\.Callable\[.*\] expects a function or a callable class: (.*)\. Got value:"
    r" Namespace\(class_path='([\w.]+)'.*"
)
_NUMBER = re.compile(r"(<class 'float'>); no class is named (\S+); name one .* its import path")
HINTS = ("did you mean", "is a setting of", "it takes")
_NO_HEAD = (
    "; each reward has one, as in {vote: {head: ClusterVote}}; one whose name is mistyped is"
    " another reward"
)
_REWARD = " rlif_lightning.WeightedReward: "
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")


class Parser(LightningArgumentParser):
    """Lightning's parser, which also says what a setting of an earlier version is called now."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the present names of settings that were renamed, and exit."""
        message = _ONE_CALLBACK.sub("", _IN_GROUP.sub(r"\1\2.", message))
        message = _COMPUTED.sub(r'Linked "\2" must be given via "\1".', message)
        added, said = _hint(message), _on_one_line(_without_types(message))
        # An outer parser repeats what an inner one said.
        if not (added or any(hint in said for hint in HINTS)):
            options = (each[2:] for each in self._option_string_actions)
            owner = owner_hint(message)
            said = _with_owner(said, owner) if owner else said + meant(said, options)
        said = said.replace(_REWARD, " ")
        if said.startswith("model.rewards: ") and said.endswith("are required: head"):
            said += _NO_HEAD
        super().error(said + ("" if added in message else added), ex)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file that says nothing in vain."""
        check_config(Path(path))
        return super().parse_path(path, *args, **kwargs)

    def format_help(self, *args: Any) -> str:
        """Return the help, ours first."""
        arrange(self)
        return super().format_help(*args)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write settings without checking them again: what Lightning saves has just been parsed."""
        super().save(*args, **kwargs, skip_validation=True)

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: before an error it would be a hundred lines, and ``--help`` has them."""


def with_weighted_rewards(rewards: dict[str, Any]) -> dict[str, Any]:
    """Return ``{name: HEAD}``, the short form of rewards, as ``{name: {head: HEAD}}``.

    Args:
        rewards: ``model.rewards`` as the parser returns it.
    """
    others = {each.name: each.default for each in fields(WeightedReward) if each.name != "head"}
    return {
        name: Namespace(head=given, **others) if "class_path" in given else given
        for name, given in rewards.items()
    }


def _without_types(message: str) -> str:
    """Return a parser's message without the lines about types, unless no other is left."""
    named = _NO_CLASS.sub(
        r"no class is named \1; name one of ours, or give its import path", message
    )
    first, *lines = dict.fromkeys(named.splitlines())
    kept = [line for line in lines if line.strip() and not _OF_TYPES.match(line)]
    return "\n".join([first, *(kept or lines)])


def _on_one_line(message: str) -> str:
    """Return a parser's message with the nested places of a mistake in a row, as a dotted path."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    joined = "; ".join(dict.fromkeys(filter(None, lines))).replace(":; ", ": ")
    named = _CLASS_AT.sub(r"\1:", _PLACE.sub(r"\1:", joined))
    return _NUMBER.sub(r"\1, not \2", _CALLED.sub(r"\2: \1", _GIVEN.sub("", named)))


def _with_owner(said: str, owner: str) -> str:
    """Return a message with the owner of a setting, which says more than the types do."""
    place = said.partition(": ")[0]
    return f"{place}: {owner[2:]}" if "NestedArg" in said else said + owner


def _hint(message: str) -> str:
    """Return the present names of the former ones in a parser's message, to be appended to it."""
    found = {}
    for name in _NAME.findall(message):
        parts = name.split(".")
        for old in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if old in RENAMED:
                found[old] = f"{old} is {RENAMED[old]} now"
    for name in _ARGUMENT.findall(message):
        for kind, arguments in ARGUMENTS_OF.items():
            if name in arguments and re.search(rf"\b{kind}\b", message):
                found[name] = f"{name} of {kind} is {arguments[name]} now"
    return f"; {', '.join(found.values())}" if found else ""


# Settings that come in kinds: YAML names the class.
set_parsing_settings(subclasses_enabled=[Advantage, Objective])
BOUNDS = {*vars(BoundedObjective)["__annotations__"]}
_discard_arguments = type_hints.discard_init_args_on_class_path_change


def _discard_foreign(parser_or_action: Any, old: Any, new: Any) -> None:
    """Drop what an advantage or objective has that a setting replaces by another class.

    jsonargparse keeps what both classes have. Two things of it must go, so that GSPO does not clip
    at KLCov's 0.2: defaults of the old class, and bounds that one of the classes declares for
    itself, because they then mean something else (DPPO's ``clip_low`` bounds a divergence).
    """
    path = old.get("class_path") if isinstance(old, Namespace) else None
    if path and old.get("init_args") and path != new["class_path"]:
        before, now = imported(path), imported(new["class_path"])
        if isinstance(before, type) and issubclass(before, Advantage | Objective):
            given, dropped = old.init_args, {}
            for field in fields(before):
                if field.name in given and given[field.name] == field.default:
                    del given[field.name]
            for name in BOUNDS & {*given.keys()}:
                if _declares(before, name) is not _declares(now, name):
                    dropped[name] = given.pop(name)
            _say_dropped(dropped, before, now, new.get("init_args") or {})
    _discard_arguments(parser_or_action, old, new)


def _declares(kind: Any, name: str) -> type | None:
    """Return the class, of a class and its bases, whose body holds a setting last."""
    return next(
        (base for base in kind.__mro__ if name in vars(base).get("__annotations__", ())), None
    )


def _say_dropped(dropped: dict[str, Any], before: type, now: type, given: Any) -> None:
    """Warn of values that the new class has too, with a meaning of its own."""
    lost = {k: v for k, v in dropped.items() if _declares(now, k) and k not in given}
    if lost:
        values = ", ".join(f"{name}={value}" for name, value in lost.items())
        warnings.warn(
            f"{values} was given to {before.__name__}; {now.__name__} has its own default, because"
            " the setting means something else there. Give it after the class",
            stacklevel=2,
        )


type_hints.discard_init_args_on_class_path_change = _discard_foreign


_construct_mapping = loaders.get_yaml_default_loader().construct_mapping


def _with_each_key_once(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
    """Read a mapping; YAML would silently keep the last of two values of one key.

    Raises:
        ValueError: names the key and the lines.
    """
    first: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in first and isinstance(key.value, str):
            raise ValueError(
                f"{key.value!r} is given twice, in lines {first[key.value]} and {line} of a YAML"
                " text; take one of them out, or give it another name"
            )
        if isinstance(key.value, str):
            first[key.value] = line
    return _construct_mapping(loader, node, deep=deep)


loaders.get_yaml_default_loader().construct_mapping = _with_each_key_once
