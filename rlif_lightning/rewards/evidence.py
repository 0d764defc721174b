"""Evidence: what a completion's claims are held against. ``Evidence`` is what to subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rlif_lightning.data.columns import column_values
from rlif_lightning.data.described import Described
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.records import Rollout


class Evidence(Described, ABC):
    """The passages that each completion's claims are held against.

    Attributes:
        columns: the data set's columns that it reads, as of a reward head.
    """

    columns: Sequence[str] = ()

    def check(self, problems: EncodedSplit) -> None:
        """Refuse problems without evidence that can be read, before anything is sampled."""

    @abstractmethod
    def passages(self, rollout: Rollout) -> list[list[str]]:
        """Return the texts for each of B completions; none where there is no evidence."""


class EvidenceColumn(Evidence):
    """Evidence from the data set, such as retrieved passages: a text or a list of texts.

    Args:
        column: the column, or a dotted path.
    """

    def __init__(self, column: str = "passages"):
        super().__init__()
        self.column, self.columns = column, (column,)

    def check(self, problems: EncodedSplit) -> None:
        """Refuse a column that is not there, or that holds other values."""
        named = f"EvidenceColumn.column={self.column!r}"
        problems.check_column(named, self.column)
        for row, value in column_values(problems.dataset, self.column, problems.rows.tolist()):
            texts_of(value, f"{named}, row {row},")

    def passages(self, rollout: Rollout) -> list[list[str]]:
        return [texts_of(value, self.column) for value in rollout.column(self.column)]


class EvidenceRule(Evidence):
    """Evidence by a function of a prompt's and a completion's text, such as what it searched for.

    Args:
        rule: a function from the two texts to a list of texts, by its import path in YAML.
    """

    names_code: ClassVar[bool] = True  # no checkpoint may have it imported

    def __init__(self, rule: Callable[[str, str], list[str]]):
        super().__init__()
        self.rule = rule

    def passages(self, rollout: Rollout) -> list[list[str]]:
        prompts = [text for text in rollout.prompts.texts for _ in range(rollout.group_size)]
        given = map(self.rule, prompts, rollout.texts)
        return [texts_of(value, "what EvidenceRule.rule returned") for value in given]


def texts_of(value: Any, named: str) -> list[str]:
    """Return evidence as a list of texts that say something.

    Raises:
        ValueError: it is neither a text nor a list of texts.
    """
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{named} is {value!r:.100}; evidence is a text, or a list of texts such as passages"
        )
    return [text for text in texts if text.strip()]
