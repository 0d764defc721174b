"""Many small cases in one test, which costs less than a test for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from harness.files import ROOT

Case = TypeVar("Case")


def check_each(
    check: Callable[[Case], None], cases: Iterable[Case], name: Callable[[Case], str] = str
) -> None:
    """Run a check on each case, and raise one error that has every case that failed.

    Raises:
        AssertionError: Some case failed, or there is none.
    """
    failed, number = [], 0
    for case in cases:
        number += 1
        try:
            check(case)
        except Exception as error:
            failed.append(f"{name(case)}: {type(error).__name__}: {error}")
    assert number, "there is no case to check"
    assert not failed, f"{len(failed)} of {number} cases fail:\n" + "\n".join(failed)


def from_root(path: Path) -> str:
    """Return the name of a file of this repository, as seen from its root."""
    return str(path.relative_to(ROOT))
