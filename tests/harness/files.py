"""The files of this repository, by kind."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = f"{ROOT}:{ROOT / 'tests'}"  # of a process that finds this checkout and its tests
PACKAGE = "rlif_lightning"
LIBRARY = sorted((ROOT / PACKAGE).rglob("*.py"))
CALLBACKS = sorted((ROOT / "callbacks").rglob("*.py"))
SCRIPTS = [
    path
    for folder in ("examples", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
EVERYTHING = [*LIBRARY, *CALLBACKS, *SCRIPTS]


def names_of(statement: ast.AST) -> set[str]:
    """What an import statement may name: modules, and what is taken from them."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        module = statement.module
        return {module, *(f"{module}.{alias.name}" for alias in statement.names)}
    return set()


def module_of(path: Path) -> str:
    """The dotted name of a file of the library, a package by its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
