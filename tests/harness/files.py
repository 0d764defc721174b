"""The files of this repository, by kind."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "rlif_lightning"
LIBRARY = sorted((ROOT / PACKAGE).rglob("*.py"))
CALLBACKS = sorted((ROOT / "callbacks").rglob("*.py"))
SCRIPTS = [
    path
    for folder in ("examples", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
EVERYTHING = [*LIBRARY, *CALLBACKS, *SCRIPTS]


def module_of(path: Path) -> str:
    """The dotted name of a file of the library, a package by its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
