"""Where a quality curve collapses: the removal after which each further one costs several times as much.

UIDL (arXiv 2403.17887, section 4) and "A deeper look at depth pruning of LLMs" (arXiv 2407.16286) read the sharp
transition off their figures. Here it is the break of a broken stick, two lines that meet, fitted by least squares; it
counts only where one line fits far worse, so that even and smoothly bending curves have none. Known limit: one break is
found, the one that explains the curve best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS_AT_LEAST = 6
"""With fewer points two lines fit any curve."""

PLATEAU = 0.9
"""A curve is judged up to the point where it has first risen by this share: a collapsed model cannot get much worse,
and the flat end would hide the rise."""

RATES_RATIO = 4.0
"""How many times faster damage must grow after the break. The two lines of a parabola stay below 3.5."""

UNEXPLAINED = 0.25
"""The most that a broken stick may leave of the squared error of one line."""


@dataclass(frozen=True)
class Collapse:
    """The last point before a collapse.

    Attributes:
        place: its index on the curve.
        rate_before: damage for each unit of what was removed, up to there.
        rate_after: the same from there on.
    """

    place: int
    rate_before: float
    rate_after: float


def find_collapse(removed: Sequence[float], damage: Sequence[float]) -> Collapse | None:
    """The last point before damage begins to grow `RATES_RATIO` times as fast; None where it never does.

    Args:
        removed: how much is gone at each point, ascending, in any unit.
        damage: what it costs: larger is worse (of an accuracy its negative). Not finite means collapsed.
    """
    assert len(removed) == len(damage)
    x, y = np.asarray(removed, np.float64), np.asarray(damage, np.float64)
    finite = np.isfinite(y)
    if not finite.all():  # what overflowed is as bad as the worst that did not
        y = np.where(finite, y, y[finite].max() if finite.any() else 0.0)
    end = _first_of_the_plateau(y)
    x, y = x[: end + 1], y[: end + 1]
    if len(x) < POINTS_AT_LEAST or not np.all(np.diff(x) > 0):
        return None
    line_error = _fit(np.stack([np.ones_like(x), x], axis=1), y)[1]
    fits = {place: _fit(_broken_stick(x, place), y) for place in range(2, len(x) - 1)}
    place = min(fits, key=lambda candidate: fits[candidate][1])
    (_, before, bend), error = fits[place]
    after = before + bend
    if error > UNEXPLAINED * line_error or after <= 0 or after < RATES_RATIO * before:
        return None
    return Collapse(place, float(before), float(after))


def _first_of_the_plateau(damage: np.ndarray) -> int:
    """The first point at which most of the damage is done."""
    if not len(damage):
        return -1
    low, high = damage.min(), damage.max()
    return int(np.argmax(damage >= low + PLATEAU * (high - low)))


def _broken_stick(x: np.ndarray, place: int) -> np.ndarray:
    """Columns of a continuous curve of two lines that meet at a point: value at 0, slope, change of slope."""
    return np.stack([np.ones_like(x), x, np.maximum(x - x[place], 0.0)], axis=1)


def _fit(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of least squares and the squared error they leave."""
    coefficients = np.linalg.lstsq(columns, y, rcond=None)[0]
    return coefficients, float(np.square(y - columns @ coefficients).sum())
