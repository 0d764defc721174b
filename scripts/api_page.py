"""The public names of the package: docs/api.md, from docstrings and signatures.

python scripts/api_page.py            # prints the entries
python scripts/api_page.py --write    # writes them into docs/api.md
python scripts/api_page.py --check    # exit code 1 if the page has others
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from page_tables import command_line, replaced

import rlif_lightning

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
MARKS = "<!-- written by scripts/api_page.py -->", "<!-- end of the entries -->"
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Example|Yields):$", re.M)
ROLE = re.compile(r":\w+:`~?([^`]+)`")
ROOMS = {  # in the order of one training step
    "module": "Run",
    "trainer": "Run",
    "running": "Run",
    "records": "Records",
    "data": "Data",
    "model": "Model",
    "sampling": "Rollout",
    "rollout": "Rollout",
    "environments": "Environments",
    "judges": "Judges",
    "rewards": "Rewards",
    "learning": "Learning",
    "answers": "Answers and evaluation",
    "evaluation": "Answers and evaluation",
    "sandbox": "Answers and evaluation",
}


def prose(doc: str | None) -> str:
    """Return a docstring up to its first section, as Markdown."""
    text = SECTION.split(inspect.cleandoc(doc or ""))[0].strip()
    return ROLE.sub(r"`\1`", text.replace("``", "`"))


def signature_of(thing: object) -> str:
    """Return a signature without ``self`` and without quotes around types."""
    parameters = inspect.signature(thing).parameters.values()  # pyright: ignore[reportArgumentType]
    return f"({', '.join(_shown(each) for each in parameters if each.name != 'self')})"


def _shown(parameter: inspect.Parameter) -> str:
    mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    optional = parameter.default is not parameter.empty
    return f"{mark}{parameter.name}{'=...' if optional else ''}"


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """Yield the public methods that a class documents, without hooks of Lightning and torch.

    ``forward`` is a hook too, and is kept.
    """
    foreign = [base for base in cls.__mro__ if not base.__module__.startswith("rlif_lightning")]
    for name, value in vars(cls).items():
        if name != "forward" and any(hasattr(base, name) for base in foreign):
            continue
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and inspect.isfunction(value) and value.__doc__:
            yield name, value


def entry(name: str) -> str:
    """One public name as Markdown."""
    thing = getattr(rlif_lightning, name)
    lines = [f"### {name}", f"`from {thing.__module__} import {name}`", "", prose(thing.__doc__)]
    rows = [
        f"| `{method}{signature_of(function)}` | {' '.join(prose(function.__doc__).split())} |"
        for method, function in methods(thing)
    ]
    if rows:
        lines += ["", "| method | what it does |", "| --- | --- |", *rows]
    return "\n".join(lines)


def tables() -> str:
    """All public names as Markdown, by the part of a training step that they belong to."""
    chapters: dict[str, list[str]] = {chapter: [] for chapter in dict.fromkeys(ROOMS.values())}
    unknown = defaultdict(list)
    for name in rlif_lightning.__all__:
        room = getattr(rlif_lightning, name).__module__.split(".")[1]
        chapters.get(ROOMS.get(room, ""), unknown[room]).append(name)
    if any(unknown.values()):
        raise ValueError(f"no chapter for {dict(unknown)}; name the room in ROOMS")
    parts = []
    for chapter, names in chapters.items():
        parts += [f"## {chapter}", *map(entry, names)]
    return "\n\n".join(parts)


def written(page: str) -> str:
    """The page with today's entries."""
    return replaced(page, MARKS, tables())


def main() -> None:
    """Command line."""
    stale = "docs/api.md has other entries; run scripts/api_page.py --write"
    command_line(__doc__, PAGE, MARKS, tables(), stale)


if __name__ == "__main__":
    main()
