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
from rlif_lightning.learning.objectives import Objective
from rlif_lightning.learning.update import UpdatePlan

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
}
# jsonargparse names an unknown setting of a file within its group.
IN_GROUP = re.compile(r"(Group '([\w.]+)' does not accept option ')(?!\2\.)")
NAME = re.compile(r"(?<![\w.])[a-z_]+(?:\.[a-z_]+)*")


class Parser(LightningArgumentParser):
    """Lightning's parser, which also says what a setting of an earlier version is called now."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the present names of settings that were renamed, and exit."""
        message = IN_GROUP.sub(r"\1\2.", message)
        super().error(message + _renamed(message), ex)


def _renamed(message: str) -> str:
    """Return the present names of the former ones in a message, as a sentence of their own."""
    found = {}
    for name in NAME.findall(message):
        parts = name.split(".")
        for old in (parts[0], ".".join(parts[:2])):
            if old in RENAMED:
                found[old] = f"{old} is {RENAMED[old]} now"
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
