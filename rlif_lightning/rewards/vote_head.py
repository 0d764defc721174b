"""``VoteHead``: the settings that the votes on answers and on behaviour share, with their check."""

from __future__ import annotations

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.rewards.base import RewardHead

_MODES = ("soft", "hard", "gated")
_DENOMINATORS = ("parseable", "group")


class VoteHead(RewardHead):
    """A head that scores a completion by how much of its group agrees with it.

    Args:
        mode: ``soft``, ``hard`` or ``gated``; this and the rest as for ``vote_shares``.
        denominator: ``parseable`` or ``group``.
        min_parseable: fewest answers (of code: behaviours) for a vote.
        entropy_range: lowest and highest entropy of a group's answers in nats, for ``gated`` only.

    Raises:
        ValueError: an unknown name or a number out of range.
    """

    def __init__(
        self,
        mode: str = "soft",
        denominator: str = "parseable",
        min_parseable: int = 2,
        entropy_range: tuple[float, float] | None = None,
    ):
        super().__init__()
        check_vote_settings(mode, denominator, min_parseable, entropy_range)
        self.mode, self.denominator = mode, denominator
        self.min_parseable, self.entropy_range = min_parseable, entropy_range

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse groups too small for a vote."""
        if self.min_parseable > group_size:
            raise ValueError(
                f"min_parseable={self.min_parseable} is more than data.group_size={group_size}: no"
                " group could vote, and every score would be 0; lower the one or raise the other"
            )


def check_vote_settings(
    mode: str, denominator: str, min_parseable: int, entropy_range: tuple[float, float] | None
) -> None:
    """Refuse settings of a vote that ``vote_shares`` cannot take.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r} is unknown; choose one of {list(_MODES)}")
    if denominator not in _DENOMINATORS:
        raise ValueError(
            f"denominator={denominator!r} is unknown; choose one of {list(_DENOMINATORS)}"
        )
    if min_parseable < 1:
        raise ValueError(f"min_parseable={min_parseable} must be at least 1")
    if (mode == "gated") != (entropy_range is not None):
        raise ValueError(
            f"entropy_range={entropy_range} with mode={mode!r}: give (low, high) with mode='gated'"
            " only"
        )
    if entropy_range is not None and not 0 <= entropy_range[0] <= entropy_range[1]:
        raise ValueError(
            f"entropy_range={entropy_range} must be (low, high) in nats with 0 <= low <= high"
        )
