"""Every setting that YAML can build: the tables of docs/settings.md, from docstrings.

python scripts/settings_page.py            # prints them
python scripts/settings_page.py --write    # writes them into docs/settings.md
python scripts/settings_page.py --check    # exit code 1 if the page has others
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

from page_tables import command_line, replaced

import callbacks
import rlif_lightning
from rlif_lightning.evaluation.prediction_files import Predictions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
MARKS = "<!-- written by scripts/settings_page.py -->", "<!-- end of the tables -->"
# Where a class is named in YAML; a class that another one needs follows that one.
ROOTS = {
    "model": [rlif_lightning.RLIFModule],
    "data": [rlif_lightning.PromptData],
    "trainer.strategy": [rlif_lightning.ShardedStrategy, rlif_lightning.TensorParallelStrategy],
    "trainer.callbacks": [rlif_lightning.RunCheckpoints]
    + [getattr(callbacks, name) for name in callbacks.__all__],
    "predictions": [Predictions],
}
OURS = ("rlif_lightning", "callbacks")
# What Python accepts beside the type that YAML has.
LIKE = re.compile(r"(\w+)Like\b")
NAMES_OF_LIKE = {
    "TokenizerLike": "str",
    "RewardLike": "WeightedReward | RewardHead",
    "FunctionLike": "str",
}
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*)")


def meanings(cls: type) -> dict[str, str]:
    """Return what a class's own docstring says under ``Args`` or ``Attributes``, name by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    listed = False
    for line in inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines():
        if line and not line.startswith("    "):
            listed = line in ("Args:", "Attributes:")
        elif listed and (matched := ARGUMENT.match(line)):
            names = matched[1].split(", ")
            found |= dict.fromkeys(names, matched[2])
        elif listed:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def settings(
    cls: type, signature: inspect.Signature | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each setting that the class's own docstring describes.

    Types and defaults are those of ``signature``, the class's own if it is not given.
    """
    parameters = (signature or inspect.signature(cls)).parameters
    for name, meaning in meanings(cls).items():
        if name in parameters:
            parameter = parameters[name]
            yield name, type_of(parameter), default_of(parameter), meaning


def type_of(parameter: inspect.Parameter) -> str:
    """A parameter's type as it is written in the source."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return LIKE.sub(lambda match: NAMES_OF_LIKE.get(match[0], match[1]), text)


def default_of(parameter: inspect.Parameter) -> str:
    """A default as YAML writes it; settings that are a class of their own by the class's name."""
    default = parameter.default
    if default is inspect.Parameter.empty:
        return "(required)"
    if type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" or inspect.isfunction(default):
        return "its defaults"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, functools.partial):
        given = ", ".join(f"{name}={value}" for name, value in default.keywords.items())
        return f"{default.func.__name__}({given})"
    if isinstance(default, str | int | float | tuple | list | dict):
        return str(default).replace("\n", "\\n") if default != "" else '""'
    return type(default).__name__


def names_of(cls: type) -> dict[str, object]:
    """Return what annotations of a class may name: a dataclass inherits those of other modules."""
    modules = [vars(sys.modules[base.__module__]) for base in reversed(cls.__mro__)]
    return {name: value for each in modules for name, value in each.items()}


def own_parts(cls: type) -> Iterator[type]:
    """The project's classes in the types of a class's settings."""
    for hint in typing.get_type_hints(cls.__init__, names_of(cls)).values():
        for part in parts_of(hint):
            if isinstance(part, type) and part.__module__.split(".")[0] in OURS:
                yield part


def needed(cls: type) -> Iterator[type]:
    """The project's classes in the types of a class's settings, and their public subclasses."""
    for part in own_parts(cls):
        yield part
        yield from subclasses(part)


def parts_of(hint: object) -> Iterator[object]:
    """A type and, of a union or a container, everything in it."""
    yield hint
    for inner in typing.get_args(hint):
        yield from parts_of(inner)


def is_public(cls: type) -> bool:
    """Whether the package exports the class."""
    return getattr(rlif_lightning, cls.__name__, None) is cls


def subclasses(cls: type) -> Iterator[type]:
    """All public subclasses by name, each behind its parent, whatever was imported first."""
    for child in sorted(cls.__subclasses__(), key=lambda each: each.__name__):
        if is_public(child):
            yield child
        yield from subclasses(child)


def classes() -> dict[type, str]:
    """Each class with settings -> the part of a configuration that it belongs to."""
    for name in rlif_lightning.__all__:
        getattr(rlif_lightning, name)  # imported, so that its parent knows it
    found: dict[type, str] = {}
    for place, roots in ROOTS.items():
        waiting = list(roots)
        while waiting:
            cls = waiting.pop(0)
            if cls not in found:
                found[cls] = place
                waiting = [*needed(cls), *waiting]
    return found


def section(cls: type) -> str:
    """A class as Markdown: its first line, and a table of its settings."""
    first = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    lines = [f"### {cls.__name__}", first.replace("``", "`")]
    parents = [parent for parent in cls.__mro__[1:-1] if any(settings(parent))]
    public = next((parent for parent in parents if is_public(parent)), None)
    if public and inspect.signature(cls).parameters.keys() & meanings(public).keys():
        lines += ["", f"It has the settings of [{public.__name__}](#{public.__name__.lower()})."]
    hidden = [parent for parent in parents if not is_public(parent)]  # listed nowhere else
    given = inspect.signature(cls)
    rows = list({row[0]: row for each in (*hidden, cls) for row in settings(each, given)}.values())
    if rows:
        lines += ["", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, kind, default, meaning in rows:
            cells = (f"`{name}`", f"`{kind}`", f"`{default}`", meaning.replace("``", "`"))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def tables() -> str:
    """All classes as Markdown, by the part of a configuration that they belong to."""
    found = classes()
    parts = []
    for place in ROOTS:
        parts.append(f"## `{place}`")
        parts += [section(cls) for cls, at in found.items() if at == place]
    return "\n\n".join(parts)


def written(page: str) -> str:
    """The page with today's tables."""
    return replaced(page, MARKS, tables())


def main() -> None:
    """Command line."""
    stale = "docs/settings.md has other tables; run scripts/settings_page.py --write"
    command_line(__doc__, PAGE, MARKS, tables(), stale)


if __name__ == "__main__":
    main()
