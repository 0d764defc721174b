"""The order and the words of ``--help``: ours first, choices as choices, what is refused marked."""

from __future__ import annotations

import re
from typing import Any

PROGRAM = "rlif"
ABOUT = (
    "Train a language model by reinforcement learning from its own feedback, without labels. Begin"
    " with `rlif fit --config configs/quickstart.yaml`; `rlif status RUN_DIR` says how a run ended,"
    " `rlif generate RUN_DIR PROMPT` and `rlif chat RUN_DIR` ask a trained policy. Every setting"
    " is a line of a YAML file (--config FILE, several are merged in order) or an option."
)
USAGE = f"{PROGRAM} {{}} [--config FILE ...] [--GROUP.NAME VALUE ...]"
# Lightning's options that a run refuses, with ours; the checks are in setup_checks and PromptData.
REFUSED = {
    "trainer.accumulate_grad_batches": "an update is cut up by --model.update.micro_batch_tokens",
    "trainer.gradient_clip_val": "set --model.update.max_grad_norm",
    "trainer.gradient_clip_algorithm": "set --model.update.max_grad_norm",
    "trainer.overfit_batches": "use a source of a few problems",
}
_CHOICES = re.compile(r"((?:[\w@.-]+ \| )+[\w@.-]+)(?=[:.,; ]|$)")


def arrange(parser: Any) -> None:
    """Put our options before Lightning's, and mark choices and refused options."""
    groups = parser._action_groups
    groups.sort(key=_is_of_lightning)
    for group in groups:
        for action in group._group_actions:
            _describe(action)


def _is_of_lightning(group: Any) -> bool:
    return any(action.dest.startswith("trainer.") for action in group._group_actions)


def _describe(action: Any) -> None:
    if action.dest in REFUSED:
        action.help = f"REFUSED by a run: {REFUSED[action.dest]}."
    found = _CHOICES.match(action.help or "")
    if found and action.metavar is None and action.choices is None and action.option_strings:
        action.metavar = f"{{{found[1].replace(' | ', ',')}}}"
