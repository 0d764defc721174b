"""The command line's parser: settings that come in kinds, and former names of settings.

Importing this file sets jsonargparse's handling of advantages and objectives for the process.
"""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse import _typehints as type_hints
from lightning.pytorch.cli import LightningArgumentParser

from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.learning.advantages import Advantage
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.running.former_settings import ARGUMENTS_OF

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


class Parser(LightningArgumentParser):
    """Lightning's parser, which also says what a setting of an earlier version is called now."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the present names of settings that were renamed, and exit."""
        message = _IN_GROUP.sub(r"\1\2.", message)
        added = _hint(message)
        super().error(message if added in message else message + added, ex)


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
_discard_arguments = type_hints.discard_init_args_on_class_path_change


def _discard_defaults(parser_or_action: Any, old: Any, new: Any) -> None:
    """Drop the defaults of an advantage or objective that a setting replaces by another class.

    jsonargparse keeps what both classes have. With the old class's defaults among it, the new class
    would not have its own: GSPO would clip at KLCov's 0.2.
    """
    path = old.get("class_path") if isinstance(old, Namespace) else None
    if path and old.get("init_args") and path != new["class_path"]:
        module, _, name = path.rpartition(".")
        kind = getattr(import_module(module), name) if module else None
        if isinstance(kind, type) and issubclass(kind, Advantage | Objective):
            for field in fields(kind):
                given = old.init_args
                if field.name in given and given[field.name] == field.default:
                    del given[field.name]
    _discard_arguments(parser_or_action, old, new)


type_hints.discard_init_args_on_class_path_change = _discard_defaults
