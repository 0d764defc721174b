"""The figures that one related system logs, of those with few."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import Logged

_ENTITIES = "rlif_lightning/rewards/entity_rubric.py"
_PAIRS = "rlif_lightning/rewards/pairwise.py"
SYSTEMS = {
    "criterion/<criterion>/<figure>": Logged(
        "as `<figure>`",
        "A figure of a criterion's head that an earlier criterion logs too (Rubric).",
        "as `<figure>`",
        "rlif_lightning/rewards/held_head.py",
    ),
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
    "turing/rating": Logged(
        "1 to 7",
        "How human the judge finds replies; 4 = as human as the human's (PairwiseJudgeHead).",
        "mean over the judged completions of all ranks; NaN without any",
        _PAIRS,
    ),
    "turing/copied": Logged(
        "share",
        "Replies with five words or more in a row of their prompt.",
        "mean over the completions of all ranks that are asked about; NaN without any",
        _PAIRS,
    ),
    "turing/well_formed": Logged(
        "share",
        "Completions that are asked about: with reasoning and a reply.",
        "mean over the completions of all ranks",
        _PAIRS,
    ),
    "supervised/loss": Logged(
        "nats",
        "Cross-entropy of the texts that are trained on, before the rollout's updates.",
        "mean over the texts' tokens of all ranks",
        "rlif_lightning/running/texts.py",
    ),
}
