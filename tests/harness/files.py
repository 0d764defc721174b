"""The files of this repository, by kind."""

from __future__ import annotations

import ast
import subprocess
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


def known_to_git(ending: str, *options: str) -> list[Path]:
    """The files of this repository with such an ending; where git cannot tell (an unpacked sdist, a
    checkout that belongs to somebody else), those that are in no hidden folder.
    """
    command = ["git", "ls-files", *options]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        known = [ROOT / name for name in found.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        inside = [path for path in ROOT.iterdir() if path.name[0] != "."]
        known = [each for path in inside for each in (path, *path.rglob("*"))]
    return sorted(path for path in known if path.name.endswith(ending) and path.is_file())


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
