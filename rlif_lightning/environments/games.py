"""Games that need no package: small enough for a small model, and each with a use.

``CountdownStepwise`` has actions with structure (ReuseRL's third task), ``GuessTheNumber`` needs
memory, ``GridWalk`` can be walked into holes. Games depend on the problem's columns and the seed
alone.
"""

from __future__ import annotations

import itertools
import operator
import random
from typing import Any

from rlif_lightning.environments.base import Step

OPERATIONS = {
    "ADD": operator.add,
    "SUB": operator.sub,
    "MUL": operator.mul,
    "DIV": operator.floordiv,
}
INVALID = "INVALID"
LARGEST = 99


def draw_countdown(rng: random.Random, size: int, largest: int) -> tuple[list[int], int]:
    """Draw numbers, and a target that two operations or more can reach and one cannot.

    Args:
        rng: draws.
        size: how many numbers, >= 3.
        largest: number.
    """
    while True:
        numbers = [rng.randint(1, largest) for _ in range(size)]
        pool = list(numbers)
        for _ in range(rng.randint(2, size - 1)):
            rng.shuffle(pool)
            made = result(rng.choice([*OPERATIONS]), pool[0], pool[1])
            if made is None:
                break
            pool = [made, *pool[2:]]
        else:
            if pool[0] not in numbers and not _is_near(numbers, pool[0]):
                return numbers, pool[0]


def _is_near(numbers: list[int], target: int) -> bool:
    """Say whether one operation reaches the target."""
    pairs = itertools.permutations(numbers, 2)
    return any(result(name, a, b) == target for a, b in pairs for name in OPERATIONS)


def result(name: str, a: int, b: int) -> int | None:
    """Return what an operation makes of two numbers; None where it is not allowed.

    Results lie in 1 to 99, and quotients are whole.

    Example:
        >>> result("SUB", 3, 5), result("DIV", 6, 3), result("DIV", 7, 3), result("DIV", 7, 0)
        (None, 2, None, None)
    """
    if name == "DIV" and (b == 0 or a % b):
        return None
    made = OPERATIONS[name](a, b)
    return made if 0 < made <= LARGEST else None


def shown_numbers(numbers: list[int]) -> str:
    """Return numbers as a game shows them."""
    return " ".join(map(str, sorted(numbers)))


class CountdownStepwise:
    """Reach the target by ``ADD a b``, ``SUB a b``, ``MUL a b``, ``DIV a b``, one at a time.

    An operation takes two of the numbers and gives back its result. ``RESET`` gives the first
    numbers back. An action that is not allowed changes nothing. The reward is 1 where a result is
    the target. ``metrics``: the shares of invalid and of repeated actions and of RESET, where an
    action is repeated if the same one was tried on the same numbers before.

    Args:
        size: how many numbers, where the problem has none (columns ``numbers``, ``target``).
        largest: number that is drawn.
        shows_target: whether observations repeat the target.
    """

    def __init__(self, size: int = 4, largest: int = 9, shows_target: bool = False):
        self.size, self.largest, self.shows_target = size, largest, shows_target
        self.first: list[int] = []
        self.target = 0

    def reset(self, seed: int | None = None, **row: Any) -> str | None:
        """Begin with the row's ``numbers`` and ``target``, or those that the seed draws.

        A game that the row has is in its prompt already; one that the seed draws is returned.
        """
        given = "numbers" in row
        if given:
            self.first, self.target = list(row["numbers"]), int(row["target"])
        else:
            rng = random.Random(seed)
            self.first, self.target = draw_countdown(rng, self.size, self.largest)
        self.numbers = list(self.first)
        self.counts = dict.fromkeys(("invalid", "repeated", "reset"), 0)
        self.actions, self.seen = 0, set()
        return None if given else f"{shown_numbers(self.first)} = {self.target}"

    def step(self, action: str) -> Step:
        """Take one operation."""
        words = action.split()
        name = words[0].upper() if words else ""
        tried = (tuple(words), tuple(sorted(self.numbers)))
        self.actions += 1
        self.counts["repeated"] += tried in self.seen
        self.seen.add(tried)
        if name == "RESET" and len(words) == 1:
            self.counts["reset"] += 1
            self.numbers = list(self.first)
            return Step(self._view(), info={"action": name, "success": 0.0})
        made = self._made(name, words[1:])
        if made is None:
            self.counts["invalid"] += 1
            return Step(self._view("invalid "), info={"action": INVALID, "success": 0.0})
        if made == self.target:
            return Step("", 1.0, done=True, info={"action": name, "success": 1.0})
        return Step(self._view(), info={"action": name, "success": 0.0})

    def metrics(self) -> dict[str, float]:
        """Return shares of the episode's actions."""
        return {name: count / max(self.actions, 1) for name, count in self.counts.items()}

    def _made(self, name: str, words: list[str]) -> int | None:
        """Return an operation's result, and do it; None where it is not allowed."""
        if name not in OPERATIONS or len(words) != 2 or not all(map(str.isdecimal, words)):
            return None
        a, b = map(int, words)
        left = list(self.numbers)
        for number in (a, b):
            if number not in left:
                return None
            left.remove(number)
        made = result(name, a, b)
        if made is not None:
            self.numbers = [*left, made]
        return made

    def _view(self, before: str = "") -> str:
        target = f" = {self.target}" if self.shows_target else ""
        return f"{before}{shown_numbers(self.numbers)}{target}"


class GuessTheNumber:
    """Find a hidden number; each answer says whether it is higher or lower. The reward is 1.

    Args:
        largest: the number lies in 1..largest.
    """

    def __init__(self, largest: int = 20):
        self.largest = largest
        self.hidden = 0

    def reset(self, seed: int | None = None, **row: Any) -> str:
        """Hide a number."""
        self.hidden = random.Random(seed).randint(1, self.largest)
        return f"1 to {self.largest}"

    def step(self, action: str) -> Step:
        """Take a guess."""
        word = action.strip()
        if not word.isdecimal():
            return Step("a number, please", info={"action": INVALID})
        guess = int(word)
        if guess == self.hidden:
            return Step("", 1.0, done=True, info={"action": "guess"})
        return Step("higher" if guess < self.hidden else "lower", info={"action": "guess"})


MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class GridWalk:
    """Walk from the upper left to the lower right of a square, around holes.

    The reward is 1 at the goal; a hole ends the episode without one. A way always exists.

    Args:
        side: of the square.
        holes: how many.
    """

    def __init__(self, side: int = 4, holes: int = 3):
        self.side, self.number = side, holes
        self.place, self.holes = (0, 0), set[tuple[int, int]]()

    def reset(self, seed: int | None = None, **row: Any) -> str:
        """Draw the holes off a way that is drawn first."""
        rng, goal = random.Random(seed), self.side - 1
        moves = [(1, 0)] * goal + [(0, 1)] * goal
        rng.shuffle(moves)
        way = [(0, 0)]
        for down, right in moves:
            way.append((way[-1][0] + down, way[-1][1] + right))
        free = [(i, j) for i in range(self.side) for j in range(self.side) if (i, j) not in way]
        self.place, self.holes = (0, 0), set(rng.sample(free, min(self.number, len(free))))
        return self._view()

    def step(self, action: str) -> Step:
        """Move by one."""
        word = action.strip().lower()
        if word not in MOVES:
            return Step("up, down, left or right", info={"action": INVALID})
        i, j = self.place[0] + MOVES[word][0], self.place[1] + MOVES[word][1]
        if 0 <= i < self.side and 0 <= j < self.side:
            self.place = (i, j)
        won = self.place == (self.side - 1, self.side - 1)
        ends = won or self.place in self.holes
        return Step("" if ends else self._view(), float(won), ends, info={"action": word})

    def _view(self) -> str:
        signs = {**dict.fromkeys(self.holes, "O"), (self.side - 1, self.side - 1): "G"}
        signs[self.place] = "P"
        rows = ["".join(signs.get((i, j), ".") for j in range(self.side)) for i in range(self.side)]
        return "\n".join(rows)
