"""Objectives that every contract of one holds for."""

from __future__ import annotations

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
)

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
]
