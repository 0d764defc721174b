"""Environments for tests of what runs them; imports little, for processes that import it."""

from __future__ import annotations

import math
import os
import random
import threading
import time

from rlif_lightning.environments.base import MAX_CHARACTERS, Step

PATIENT = 600.0  # seconds that only a hang reaches, however busy the machine is


def eventually(holds):
    """Wait for what another thread or process will do."""
    last = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.02)


def all_of(pool, numbers):
    """Answers of all these episodes, by number."""
    found = {}
    while len(found) < len(numbers):
        found |= {answer.number: answer for answer in pool.answers()}
    return found


class Bad:
    """Does what the actions say."""

    made: list[Bad] = []  # noqa: RUF012
    hold = threading.Event()

    def __init__(self, hint=""):
        self.hint, self.closed, self.resets = hint, 0, 0
        Bad.made.append(self)

    def reset(self, seed=None, **row):
        self.resets += 1
        self.row, self.seed = row, seed
        if row.get("fails"):
            raise OSError("no disk")
        return f"{row['n']} {seed}"

    def step(self, action):
        if action == "raise":
            raise KeyError("lost")
        if action == "hang":
            Bad.hold.wait(PATIENT)
        if action == "nan":
            return Step("", math.nan)
        if action == "huge":
            return Step("x" * (MAX_CHARACTERS + 5))
        if action == "exit":
            os._exit(3)
        return Step(action, 0.25, done=action == "end", truncated=action == "late")

    def metrics(self):
        return {"resets": self.resets}

    def close(self):
        self.closed += 1


class Drawn:
    """Draws from the generator of its process, without a seed of its own."""

    def reset(self, seed=None, **row):
        return str(random.random())

    def step(self, action):
        return Step(str(random.random()))


class Easy:
    """Is solved by a turn whose text has a length divisible by 3, and shows what was written."""

    def reset(self, seed=None, **row):
        return ""

    def step(self, action):
        solved = len(action) % 3 == 0
        info = {"action": action[:1], "success": float(solved)}
        return Step(f"{len(action) % 10}", float(solved), done=solved, info=info)
