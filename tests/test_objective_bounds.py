"""A bound that is no number is refused: no comparison with it would ever hold a token."""

from __future__ import annotations

import math

import pytest

from rlif_lightning import CISPO, DPPO, GMPO, GSPO, SAPO, Clipped

NAN = math.nan


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[(Clipped, name) for name in ("clip_low", "clip_high", "dual_clip")],
        *[(GSPO, name) for name in ("clip_low", "clip_high", "dual_clip")],
        *[(DPPO, name) for name in ("clip_low", "clip_high", "highest_ratio")],
        *[(GMPO, name) for name in ("clip_low", "clip_high")],
        *[(CISPO, name) for name in ("clip_low", "clip_high")],
    ],
)
def test_a_bound_that_is_no_number_is_refused(kind, name):
    with pytest.raises(ValueError, match=f"{name}=nan"):
        kind(**{name: NAN})


def test_a_temperature_that_is_no_number_is_refused():
    for temperatures in ((NAN, 1.0), (1.0, NAN)):
        with pytest.raises(ValueError, match=r"temperatures=.*nan"):
            SAPO(temperatures=temperatures)
