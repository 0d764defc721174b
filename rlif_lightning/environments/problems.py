"""Problems for environments: rows of Countdown games, with the prompt that shows the game."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rlif_lightning.data.generated_text import split_of
from rlif_lightning.data.sources import GeneratedProblems, Split
from rlif_lightning.environments.games import draw_countdown, shown_numbers

if TYPE_CHECKING:
    from datasets import Dataset


class CountdownProblems(GeneratedProblems):
    """Countdown games for ``CountdownStepwise``; both splits have the same mix and share none.

    Args:
        numbers: how many numbers a game has, >= 3.
        largest: number that is drawn.
        size, validation_size, seed: as for :class:`GeneratedProblems`.

    Raises:
        ValueError: fewer than 3 numbers, or too few to draw from.
    """

    def __init__(
        self,
        numbers: int = 4,
        largest: int = 9,
        size: int = 4096,
        validation_size: int = 256,
        seed: int = 0,
    ):
        if numbers < 3 or largest < 4:
            raise ValueError(f"numbers={numbers}, largest={largest}: need at least 3 and 4")
        super().__init__(size, validation_size, seed)
        self.numbers, self.largest = numbers, largest

    def load(self, split: Split) -> Dataset:
        """Draw the split.

        Its columns are ``question`` ("2 3 5 7 = 29" and a newline), ``numbers`` and ``target``.
        """
        from datasets import Dataset

        return Dataset.from_list([self._draw(split, i) for i in range(self.sizes[split])])

    def _draw(self, split: Split, i: int) -> dict[str, object]:
        rng = random.Random(f"{self.seed}/{split}/{i}")
        while True:
            numbers, target = draw_countdown(rng, self.numbers, self.largest)
            question = f"{shown_numbers(numbers)} = {target}\n"
            if split_of(question) == split:
                return {"question": question, "numbers": numbers, "target": target}
