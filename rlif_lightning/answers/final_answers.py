"""Final answers of completions: public names to extract, spell, read, compare and cluster.

Read in this order: ``extraction.py`` (text -> answer), ``spelling.py`` (answer -> canonical
string), ``readers.py`` with ``units.py``, ``relations.py``, ``expressions.py`` and ``values.py``
(string -> what it means), ``clusters.py`` (which answers mean the same), ``library.py`` and
``math_verify_process.py`` (what only math-verify can decide, within a time limit).
"""

from rlif_lightning.answers.clusters import (
    EQUIVALENCES,
    answer_name,
    check_equivalence,
    cluster,
    equivalent,
    is_correct,
    open_clusters,
)
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.answers.library import Budget
from rlif_lightning.answers.spelling import normalise

__all__ = [
    "EQUIVALENCES",
    "AnswerExtractor",
    "Budget",
    "answer_name",
    "check_equivalence",
    "cluster",
    "equivalent",
    "is_correct",
    "normalise",
    "open_clusters",
]
