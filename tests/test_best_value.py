"""The best value of a figure, by hand."""

from __future__ import annotations

import logging
import math

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from rlif_lightning import ClusterVote, RLIFModule
from rlif_lightning.running.best_value import KeepsBest, tell_unknown

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "best", "highest", "lowest"),
    [
        (2.0, 1.0, True, False),
        (1.0, 2.0, False, True),
        (1.0, 1.0, False, False),
        (0.0, None, True, True),
        (NAN, None, False, False),
        (NAN, 1.0, False, False),
        (-INF, 1.0, False, True),
    ],
)
def test_what_is_better(value, best, highest, lowest):
    kept = [KeepsBest("val/accuracy", mode) for mode in ("max", "min")]
    for each in kept:
        each.best = best
    assert [each.is_better(value) for each in kept] == [highest, lowest]


@pytest.mark.parametrize("kind", [KeepsBest, ModelCheckpoint])
@pytest.mark.parametrize(
    ("monitor", "column", "is_told"),
    [
        ("val/acc", "answer", True),
        ("val/accuracy", None, True),
        ("val/accuracy", "answer", False),
        ("val_low/maj@8", "answer", False),
        ("val/entropy", None, False),
        ("policy/entropy", None, False),
        (None, None, False),
    ],
)
def test_a_monitor_that_no_evaluation_logs_is_told_before_the_run(
    caplog, kind, monitor, column, is_told
):
    """Without a word, a run of days would end without its best policy."""
    logging.getLogger("lightning.pytorch").propagate = True
    module = RLIFModule("rlif-arithmetic", {"vote": ClusterVote()}, answer_column=column)
    with caplog.at_level(logging.INFO):
        tell_unknown(kind(monitor=monitor), module)
    assert (f"monitor={monitor!r} is no figure of evaluations here" in caplog.text) is is_told
