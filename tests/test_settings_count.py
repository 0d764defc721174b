"""The number of settings: over everything that YAML can build, each name once for the class that
declares it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator

import callbacks
import rlif_lightning
from rlif_lightning.cli import RLIFCLI
from rlif_lightning.evaluation.prediction_files import Predictions

MOST = 227  # to be 200; what came since the settings were nested brought 14 of them
OURS = ("rlif_lightning", "callbacks")
PUBLIC = [getattr(rlif_lightning, name) for name in rlif_lightning.__all__]  # all are imported
ROOTS = [
    rlif_lightning.RLIFModule,
    rlif_lightning.PromptData,
    rlif_lightning.ShardedStrategy,
    rlif_lightning.TensorParallelStrategy,
    rlif_lightning.RunCheckpoints,
    *(getattr(callbacks, name) for name in callbacks.__all__),
    Predictions,
]
# The command line takes these from other settings: nobody can set them.
LINKED = set(re.findall(r'"(?:model|data)\.(\w+)"[,)]', inspect.getsource(RLIFCLI)))
HAS_LINKS = (rlif_lightning.RLIFModule, rlif_lightning.PromptData)
SOURCES = {("PromptData", "group_size"), ("PromptData", "answer_column")}


def parameters(cls: type) -> dict[str, str]:
    """Each parameter of a class's own constructor with its type."""
    if "__init__" not in cls.__dict__:
        return {}
    found = inspect.signature(cls.__init__).parameters
    return {
        name: str(it.annotation)
        for name, it in found.items()
        if name != "self" and it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)
    }


def settings(cls: type) -> list[str]:
    """The settings that a class declares: not those that it has from a base, be it with another
    default.
    """
    inherited = {item for base in cls.__mro__[1:] for item in parameters(base).items()}
    linked = LINKED if cls in HAS_LINKS else set()
    return [
        name
        for name, kind in parameters(cls).items()
        if (name, kind) not in inherited and (name not in linked or (cls.__name__, name) in SOURCES)
    ]


def parts_of(hint: object) -> Iterator[type]:
    """The project's classes in a type."""
    if isinstance(hint, type) and hint.__module__.split(".")[0] in OURS:
        yield hint
    for inner in typing.get_args(hint):
        yield from parts_of(inner)


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        if child.__module__.split(".")[0] in OURS:
            yield child
            yield from subclasses(child)


def buildable() -> set[type]:
    """Every class that YAML can build, and the project's bases of those."""
    found: set[type] = set()
    waiting = list(ROOTS)
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found.add(cls)
        waiting += [base for base in cls.__mro__ if base.__module__.split(".")[0] in OURS]
        # A dataclass's own constructor does not know the names of its base's module.
        written = cls if dataclasses.is_dataclass(cls) else cls.__init__
        for hint in typing.get_type_hints(written).values():
            for part in parts_of(hint):
                waiting += [part, *subclasses(part)]
    return found


def test_settings_stay_few():
    table = {cls.__name__: settings(cls) for cls in buildable()}
    listed = "\n".join(f"{len(names)} {name}: {names}" for name, names in sorted(table.items()))
    total = sum(map(len, table.values()))
    assert total <= MOST, f"{total} settings\n{listed}"


def test_the_count_knows_bases_links_and_nested_settings():
    table = {cls.__name__: settings(cls) for cls in buildable()}
    assert {"VLLMServerEngine", "Schedule", "LoRA", "Gate", "Sandbox", "AnswerChecker"} <= {*table}
    assert table["ClusterVote"] == ["extractor"]  # the rest is every vote's
    assert "seed" not in table["RLIFModule"]
    assert "group_size" in table["PromptData"]
    assert "group_size" not in table["RLIFModule"]
