"""Objectives that every contract of one holds for."""

from __future__ import annotations

from dataclasses import replace

import torch
from restatement import update

from rlif_lightning import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    SAPO,
    STARE,
    ClipCov,
    Clipped,
    DistIL,
    KLCov,
    ReferenceKL,
    Supervised,
)
from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.model.token_stats import TeacherLogprobs

OBJECTIVES = [
    Clipped(),
    Clipped(aggregation="constant", entropy_bonus=0.1, reference_kl=ReferenceKL(0.1)),
    KLCov(fraction=0.3),
    KLCov(fraction=0.3, unselected="plain", rank_by="current"),
    ClipCov(fraction=0.3, band=(-1.0, 5.0)),
    STARE(fraction=0.3),
    STARE(fraction=0.3, positive_weight=1.3, negative_weight=0.8, dual_clip=None),
    GSPO(clip_low=0.05, clip_high=0.1),
    CISPO(clip_low=0.3, clip_high=0.3),
    SAPO(),
    GMPO(clip_low=0.1, clip_high=0.2),
    DPPO(clip_low=0.02, clip_high=0.05),
    DistIL(),
    DistIL(divergence="jsd", scale="remaining", max_ratio=1.1),
    DPPO(divergence="kl", clip_low=0.01, clip_high=0.02),
    Supervised(),
    EntropyMinimisation(reference_kl=ReferenceKL(0.1)),
]


def inputs(objective: Objective) -> LossInputs:
    """A random update, with a teacher for an objective that has one."""
    batch = update()
    if objective.teacher is None:
        return batch
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, *batch.mask.shape, 4, generator=generator).log_softmax(-1)
    ids = torch.zeros(*batch.mask.shape, 3, dtype=torch.int64)
    known = TeacherLogprobs(ids, drawn[0, ..., :3], drawn[0, ..., 3])
    return replace(batch, teacher=known, candidates=drawn[1], future_baseline=batch.entropy)
