"""The figures of entity rubrics."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import Logged

_ENTITIES = "rlif_lightning/rewards/entity_rubric.py"

TRACING = {
    "entity/recall": Logged(
        "share",
        "Gold entities that a completion names (EntityRubric).",
        "mean over the completions of all ranks whose problem has entities; NaN without any",
        _ENTITIES,
    ),
    "entity/recall_wrong": Logged(
        "share",
        "The same of wrong completions: lists of names raise it where answers stay wrong.",
        "mean over those of them whose outcome is not above 0; NaN without any",
        _ENTITIES,
    ),
}
