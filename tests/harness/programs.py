"""Programs for code rewards, and a sandbox for them."""

from __future__ import annotations

from datasets import Dataset

from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.sandbox.pool import Sandbox

# Limits of time that only a hang reaches, however busy the machine is.
PATIENT = {"wall_seconds": 60, "call_seconds": 30, "memory_mb": 256}
# The strongest sandbox of the machine, whatever it is: test_escape.py is about what it stops.
SANDBOX = Sandbox("rlimits+", **PATIENT)
PROGRAMS = [
    "def f(xs, k): return sorted(xs)[:k]",
    "def f(xs, k):\n    xs.sort()\n    return [x for i, x in enumerate(xs) if i < k]",
    "def f(xs, k): return sorted(xs)[-k:]",
    "def f(xs, k): return g(xs)",
]


class ProgrammingProblems(ArithmeticProblems):
    """Sums, which also have what a problem of programming has."""

    def load(self, split) -> Dataset:
        tests = ["assert f([3, 1, 2], 2) == [1, 2]", "assert f([], 1) == []"]
        given = {
            "entry_point": "f",
            "inputs": ["[3, 1, 2], 2", "[], 1"],
            "test_list": tests,
            "prompt": "",
        }
        return super().load(split).map(lambda row: given)
