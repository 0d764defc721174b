"""Problems of reasoning-gym; and the answer and split of a generated problem, by its text alone."""

from __future__ import annotations

import math
import re
import zlib
from typing import Any, Literal


def value_of(expression: str) -> str:
    """Return the value of integers joined by "+", "-" and "*"."""
    # The value is the sum of signed products.
    products = re.findall(r"[+-]?[^+-]+", expression)
    return str(sum(math.prod(int(factor) for factor in product.split("*")) for product in products))


def split_of(question: str) -> Literal["train", "validation"]:
    """Return the split of a generated problem, by its text alone; 1 in 8 is for validation."""
    return "validation" if zlib.crc32(question.encode()) % 8 == 0 else "train"


def reasoning_gym_task(task: str, config: dict[str, Any], size: int, seed: int) -> Any:
    """Return a data set of the optional package reasoning-gym.

    Raises:
        ValueError: the package is not installed, or does not have the task or its settings.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"task={task!r}: reasoning-gym is not installed; run pip install"
            ' "rlif-lightning[reasoning]"'
        ) from error
    try:
        # The package checks a task's settings by assertions.
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"task={task!r}, config={config}: reasoning-gym refuses it: {error}"
        ) from error
