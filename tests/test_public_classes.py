"""What the command line can build by a short name.

``tests/test_start_time.py`` asks a new process as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import rlif_lightning
from harness.files import CALLBACKS, LIBRARY, PACKAGE, module_of, names_of

FILES = {module_of(path): path for path in (*LIBRARY, *CALLBACKS)}


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module that its import runs: none in functions or for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (each for part in child.orelse for each in (part, *run_at_import(part)))
        elif not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that the import of a file imports, with the packages above it."""
    for node in run_at_import(ast.parse(path.read_text())):
        for name in names_of(node):
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def test_the_command_line_imports_every_public_class():
    """A class that nobody has imported is unknown by its short name."""
    reached, found = set(), {f"{PACKAGE}.cli"}
    while found:
        reached |= found
        found = {name for each in found for name in imported(FILES[each])} & {*FILES} - reached
    public = rlif_lightning._MODULES.items()
    assert not [name for name, module in public if f"{PACKAGE}.{module}" not in reached]
    assert reached < {*FILES}  # some are imported where they are used
