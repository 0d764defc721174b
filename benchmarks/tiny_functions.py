"""Tasks for a tiny model: a function of one number, given by three tests, and pupils' solutions.

A task is ``a * x + b``, in six of ten tasks with the value ``c`` from 5 on. Its tests call the
function with 0, 1 and 9, so they show ``b``, ``a + b``, and either ``c`` (below 10) or ``9 a + b``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from datasets import Dataset

from rlif_lightning.data.generated_text import split_of
from rlif_lightning.data.sources import GeneratedProblems, Split

PLACES = (0, 1, 9)
LARGEST_FACTOR, LARGEST_OFFSET, LARGEST_CONSTANT = 9, 19, 9
WITH_CONDITION = 0.6


@dataclass(frozen=True)
class Function:
    """The numbers of a task, or those that a pupil wrote.

    Attributes:
        constant: of the numbers from 5 on; None = there is no condition.
        name: of the variable in the last formula; another one than x is a NameError.
        colon: of the first line; without it the code is a SyntaxError.
    """

    factor: int
    offset: int
    constant: int | None = None
    name: str = "x"
    colon: str = ":"

    def __call__(self, x: int) -> int:
        if self.constant is not None and x > 4:
            return self.constant
        return self.factor * x + self.offset

    def tests(self) -> list[str]:
        """Return the three tests of the task."""
        return [f"assert f({x}) == {self(x)}" for x in PLACES]

    def question(self) -> str:
        """Return the problem's text: its tests, each in a line."""
        return "".join(f"{test}\n" for test in self.tests())


def _plain(given: Function) -> str:
    condition = "" if given.constant is None else f" if x>4:\n  return {given.constant}\n"
    return f"def f(x){given.colon}\n{condition} return {given.factor}*{given.name}+{given.offset}"


def _variable(given: Function) -> str:
    condition = "" if given.constant is None else f" if x>4:\n  y={given.constant}\n"
    formula = f" y={given.factor}*{given.name}+{given.offset}\n"
    return f"def f(x){given.colon}\n{formula}{condition} return y"


def _expression(given: Function) -> str:
    condition = "" if given.constant is None else f"{given.constant} if x>4 else "
    return f"f=lambda x{given.colon}{condition}{given.factor}*{given.name}+{given.offset}"


@dataclass(frozen=True)
class Style:
    """The way in which some pupils write.

    Attributes:
        share: fraction of the pupils who write like this.
        slip_rate: probability that a number is wrong, by 1.
        write: returns the code.
    """

    share: float
    slip_rate: float
    write: Callable[[Function], str]


STYLES = {
    "plain": Style(0.35, 0.12, _plain),
    "variable": Style(0.2, 0.06, _variable),
    "expression": Style(0.45, 0.35, _expression),
}
ERROR_RATE = 0.04  # of a wrong name, and of a missing colon, in every style
# What may be wrong, in the order in which the tests show it.
PARTS = ("colon", "name", "offset", "factor", "constant")


def draw(rng: random.Random) -> Function:
    """Draw a task."""
    factor, offset = rng.randint(2, LARGEST_FACTOR), rng.randint(0, LARGEST_OFFSET)
    has_condition = rng.random() < WITH_CONDITION
    return Function(factor, offset, rng.randint(0, LARGEST_CONSTANT) if has_condition else None)


def attempt(
    task: Function, style: Style, rng: random.Random, known: Collection[str] = ()
) -> Function:
    """Return what a pupil writes for a task; the parts that are known are right."""
    found = {}
    for part in PARTS:
        right = getattr(task, part)
        rate = style.slip_rate if isinstance(right, int) else ERROR_RATE
        if part in known or right is None or rng.random() >= rate:
            continue
        if isinstance(right, int):
            found[part] = max(right + rng.choice((-1, 1)), 0 if right else 1)
        else:
            found[part] = {":": "", "x": "z"}[right]
    return replace(task, **found)


def parts_shown(task: Function, tried: Function) -> list[str]:
    """Return the parts up to the first wrong one, which are right in a second try."""
    wrong = [part for part in PARTS if getattr(task, part) != getattr(tried, part)]
    return [*PARTS[: PARTS.index(wrong[0]) + 1]] if wrong else [*PARTS]


def draw_tasks(split: Split, count: int, seed: int) -> list[Function]:
    """Return tasks of a split, each once."""
    rng, found = random.Random(f"{seed} {split}"), {}
    while len(found) < count:
        task = draw(rng)
        if split_of(task.question()) == split:
            found[task] = None
    return [*found]


class TinyFunctions(GeneratedProblems):
    """Tasks for a function of one number; the columns are ``question`` and ``test_list``.

    A task belongs to the validation split by the checksum of its question, as with sums, and is in
    a split once.

    Args:
        size, validation_size, seed: as for :class:`GeneratedProblems`.
    """

    def load(self, split: Split) -> Dataset:
        """Return one split."""
        tasks = draw_tasks(split, self.sizes[split], self.seed)
        rows = [{"question": each.question(), "test_list": each.tests()} for each in tasks]
        return Dataset.from_list(rows)
