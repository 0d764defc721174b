"""Two published laws of training without labels, to hold a run's curves against.

*Sharpening*: each intrinsic reward moves the probability p of the favoured answer to
``p e^(1/b) / (p e^(1/b) + 1 - p)`` (https://arxiv.org/abs/2603.08660). So ``log(p / (1 - p))``
rises by 1/b with each step, in a straight line.

*Entropy pays for reward*: ``R = -a e^H + b`` over a run, with the mean token entropy H in nats
(https://arxiv.org/abs/2505.22617).

Pure functions. Both fits are by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A straight line through points.

    Attributes:
        slope: per unit of x.
        intercept: at x = 0.
        r_squared: share of y's variance that the line explains; NaN where y does not vary.
        residual: root mean square of y minus the line.
    """

    slope: float
    intercept: float
    r_squared: float
    residual: float


def sharpened(p: float, inverse_b: float) -> float:
    """Return the next probability of the favoured answer, 1/b = ``inverse_b`` >= 0.

    Example:
        >>> p, found = 0.4, []
        >>> for _ in range(4):
        ...     p = sharpened(p, 1.0)
        ...     found.append(round(p, 6))
        >>> found
        [0.644405, 0.831253, 0.930509, 0.973261]
    """
    grown = p * math.exp(inverse_b)
    return grown / (grown + 1 - p)


def straight_line(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit a line by least squares.

    Raises:
        ValueError: fewer than two different x, or a number that is not finite.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) != len(ys) or not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise ValueError(f"{len(xs)} x and {len(ys)} y: a line needs as many of each, all finite")
    if len(set(xs.tolist())) < 2:
        raise ValueError("a line needs at least two different x")
    slope, intercept = np.polyfit(xs, ys, 1)
    off = ys - (slope * xs + intercept)
    spread = float(np.square(ys - ys.mean()).sum())
    explained = 1 - float(np.square(off).sum()) / spread if spread > 0 else math.nan
    return Fit(float(slope), float(intercept), explained, float(np.sqrt(np.square(off).mean())))


def fit_sharpening(steps: Sequence[float], agreement: Sequence[float]) -> Fit:
    """Fit the sharpening law to agreement over steps (rollouts, or summed learning rate).

    The slope is 1/b per step, and ``intercept`` is log(p / (1 - p)) at step 0. A mean over problems
    follows the law of one problem only where the problems are alike: fit each problem's share
    where they are not.

    Args:
        steps: rising.
        agreement: shares; those of 0 and 1, which no finite step reaches, are left out.

    Raises:
        ValueError: as :func:`straight_line`.
    """
    kept = [(x, p) for x, p in zip(steps, agreement, strict=True) if 0 < p < 1]
    return straight_line([x for x, _ in kept], [math.log(p / (1 - p)) for _, p in kept])


def fit_entropy_law(entropy: Sequence[float], reward: Sequence[float]) -> tuple[float, float, Fit]:
    """Fit ``R = -a e^H + b``.

    Args:
        entropy: H, mean token entropy, nats.
        reward: R, such as accuracy, at the same evaluations.

    Returns:
        a, b, and the fitted line over e^H. With entropy 0 the law promises ``b - a``.

    Raises:
        ValueError: as :func:`straight_line`.
    """
    fit = straight_line([math.exp(h) for h in entropy], reward)
    return -fit.slope, fit.intercept, fit
