"""What follows from the text of a generated problem alone: its answer and its split."""

from __future__ import annotations

import math
import re
import zlib
from typing import Literal


def value_of(expression: str) -> str:
    """Return the value of integers joined by "+", "-" and "*"."""
    # The value is the sum of signed products.
    products = re.findall(r"[+-]?[^+-]+", expression)
    return str(sum(math.prod(int(factor) for factor in product.split("*")) for product in products))


def split_of(question: str) -> Literal["train", "validation"]:
    """Return the split of a generated problem, by its text alone; 1 in 8 is for validation."""
    return "validation" if zlib.crc32(question.encode()) % 8 == 0 else "train"
