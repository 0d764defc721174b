"""What an entry of the table of figures says."""

from __future__ import annotations

from dataclasses import dataclass

SYMPTOMS = "callbacks/symptoms.py"
ALL_GROUPS = "mean over the groups of all ranks"
SAME = "one number, the same on all ranks"


@dataclass(frozen=True)
class Logged:
    """What one figure is.

    Attributes:
        unit: of its values; a share lies in [0, 1].
        meaning: what is measured.
        over: what it is a mean, a sum or a quantile of: completions, tokens, ranks, ...
        owner: the file that computes it, from the root of the repository.
    """

    unit: str
    meaning: str
    over: str
    owner: str
