"""``TextArenaGame``: games that draw from Python's own generator, which a process shares.

TextArena's games draw from the module ``random``. Each game has that generator for itself while it
moves, and finds it as it left it, so that games side by side are those that run alone.
"""

from __future__ import annotations

import copy
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from rlif_lightning.environments.base import Observation, Step


class SharedGenerator:
    """Python's own generator, which games have one at a time."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._game: TextArenaGame | None = None  # that has it
        self._others: Any = None  # its state as the rest of the process left it

    def take(self, game: TextArenaGame) -> None:
        """Wait until no game has the generator; put it into this game's state."""
        with self._free:
            game.began = math.inf
            self._free.wait_for(lambda: self._game is None)
            self._game, self._others = game, random.getstate()
            random.setstate(game.state)
            game.began = time.monotonic()

    def leave(self, game: TextArenaGame) -> None:
        """Restore the generator, unless the game has been given up: another one has it then."""
        with self._free:
            if self._game is game:
                game.state = random.getstate()
                random.setstate(self._others)
                self._game = None
                self._free.notify()


_GENERATOR = SharedGenerator()


class TextArenaGame:
    """A TextArena game for one player.

    TextArena's wrappers show former games after a reset, so that every game is played by a new
    copy. A game that hangs keeps the others waiting until it is given up. That time is not theirs.

    Attributes:
        began: when the present move got the generator; infinite while it waits for it.
    """

    def __init__(self, made: Any):
        self.unplayed, self.made = made, made
        self.before, self.began = "", -math.inf
        self.state: Any = random.Random().getstate()

    def reset(self, seed: int | None = None, **row: Any) -> Observation | None:
        """Begin a game."""
        self.state, self.before = random.Random(seed).getstate(), ""
        return self._alone(lambda: self._begin(seed))

    def step(self, action: str) -> Step:
        """Take a move; the reward comes with the last one."""
        return self._alone(lambda: self._move(action))

    def close(self) -> None:
        """Close the game."""
        self.made.close()

    def give_up(self) -> None:
        """Let other games have the generator, whatever this one is doing."""
        _GENERATOR.leave(self)

    def _alone(self, work: Callable[[], Any]) -> Any:
        _GENERATOR.take(self)
        try:
            return work()
        finally:
            _GENERATOR.leave(self)

    def _begin(self, seed: int | None) -> str:
        self.made = copy.deepcopy(self.unplayed)
        self.made.reset(num_players=1, seed=seed)
        return self._seen("")

    def _move(self, action: str) -> Step:
        done, _ = self.made.step(action)
        if not done:
            return Step(self._seen(action))
        rewards, _ = self.made.close()
        reward = float((rewards or {}).get(0, 0.0))
        return Step(reward=reward, done=True, info={"success": float(reward >= 1)})

    def _seen(self, action: str) -> str:
        """Return what is new: usual observations repeat the whole game, and the move."""
        _, seen = self.made.get_observation()
        if not isinstance(seen, str):  # a list of (who, text, kind), without the player's own
            return "\n".join(text for who, text, *_ in seen if who != 0).strip()
        new = seen.removeprefix(self.before)
        self.before = seen
        head, _, rest = new.lstrip("\n").partition("\n")
        is_own = bool(action) and head.endswith((f"] {action}", f"] [{action}]"))
        return (rest if is_own else new).strip()
