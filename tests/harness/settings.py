"""The settings of everything that YAML can build."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import settings_page

import rlif_lightning
from rlif_lightning.running.run_settings import LINKED as LINKS

ROOTS = [cls for roots in settings_page.ROOTS.values() for cls in roots]
# The command line takes these from other settings: nobody can set them.
LINKED = {name.partition(".")[2] for name in LINKS}
HAS_LINKS = (rlif_lightning.RLIFModule, rlif_lightning.PromptData)
SOURCES = {("PromptData", "group_size"), ("PromptData", "answer_column")}


def parameters(cls: type) -> dict[str, object]:
    """Each parameter of a class's own constructor with its type, however it is written."""
    if "__init__" not in cls.__dict__:
        return {}
    found = inspect.signature(cls.__init__).parameters
    hints = typing.get_type_hints(cls.__init__, settings_page.names_of(cls)) if is_ours(cls) else {}
    return {
        name: hints.get(name, it.annotation)
        for name, it in found.items()
        if name != "self" and it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)
    }


def settings(cls: type) -> list[str]:
    """The settings that a class declares: not those that it has from a base, be it with another
    default.
    """
    inherited = [item for base in cls.__mro__[1:] for item in parameters(base).items()]
    linked = LINKED if cls in HAS_LINKS else set()
    return [
        name
        for name, kind in parameters(cls).items()
        if (name, kind) not in inherited and (name not in linked or (cls.__name__, name) in SOURCES)
    ]


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] in settings_page.OURS


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        if is_ours(child):
            yield child
            yield from subclasses(child)


def buildable() -> set[type]:
    """Every class that YAML can build, and the project's bases of those."""
    settings_page.classes()  # imports every public name, so that each class knows its subclasses
    found: set[type] = set()
    waiting = list(ROOTS)
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found.add(cls)
        waiting += [base for base in cls.__mro__ if is_ours(base)]
        for part in settings_page.own_parts(cls):
            waiting += [part, *subclasses(part)]
    return found
