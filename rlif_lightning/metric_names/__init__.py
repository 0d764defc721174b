"""Every figure that a run can log: its unit, its meaning, what it is taken over, its owner.

Names are written as literals where they are logged and read. ``tests/test_metric_names.py`` holds
this table against a run that logs everything, and against every literal in code and docs.
``docs/metrics.md`` is written from it. What a user's own reward head or callback logs is not in it.
"""

from __future__ import annotations

import re
from functools import cache

from rlif_lightning.metric_names.acting import ACTING
from rlif_lightning.metric_names.checking import CHECKING
from rlif_lightning.metric_names.systems import SYSTEMS
from rlif_lightning.metric_names.training import TRAINING
from rlif_lightning.metric_names.voting import VOTING
from rlif_lightning.metric_names.watching import WATCHING

# What a <...> in a name stands for. Evaluations log each figure with the two ends of its interval.
PLACEHOLDERS = {
    "stage": r"(?:val|test)(?:_low|_high)?",
    "head": r"[^\W\d]\w*",
    "criterion": r"[^\W\d]\w*",
    "own": r"[\w/]+",
    "k": r"[1-9]\d*",
    "stop": r"(?:completed|truncated|max|environment)\w*",
    "figure": r"(?:checker|code|criterion|entity|environment|judge|reuse|rollout|rubric|time"
    r"|turing|vote)/\w+",
}
LIGHTNINGS = ("step", "epoch")  # the axes of every logger
HEADS = ("rlif_lightning/rewards/", "rlif_lightning/judges/")
VALIDATION = ("val/", "val_low/", "val_high/")
LOGGED = {**TRAINING, **VOTING, **ACTING, **CHECKING, **SYSTEMS, **WATCHING}


def entry_of(name: str) -> str | None:
    """Return the entry of :data:`LOGGED` that a logged name belongs to; None where it has none.

    Example:
        >>> entry_of("reward/vote/mean"), entry_of("val_low/pass@8"), entry_of("repetition/share")
        ('reward/<head>/mean', '<stage>/pass@<k>', None)
    """
    return next((entry for entry in LOGGED if re.fullmatch(_pattern(entry), name)), None)


@cache
def is_of_run(name: str) -> bool:
    """Return whether the run, an evaluation or a callback logs this name, and no reward head does.

    Example:
        >>> is_of_run("policy/clip_fraction"), is_of_run("vote/unanimous"), is_of_run("mine/length")
        (True, False, False)
    """
    entry = entry_of(name)
    return name in LIGHTNINGS or (entry is not None and not LOGGED[entry].owner.startswith(HEADS))


def _pattern(entry: str) -> str:
    """Return the regular expression of an entry's names."""
    parts = re.split(r"<(\w+)>", entry)  # text, placeholder, text, ...
    return "".join(
        PLACEHOLDERS[part] if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )
