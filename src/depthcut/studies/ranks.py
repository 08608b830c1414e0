"""Rank correlation: whether two measures put units into the same order, whatever their scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VALUES_AT_LEAST = 3
"""With only two values the rank correlation is always 1 or -1."""


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1, the least first; equal values share the mean of theirs."""
    array = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    mean_rank: NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[inverse]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation in [-1, 1]; None for fewer than three values, or where one side is all the same."""
    assert len(first) == len(second)
    if len(first) < VALUES_AT_LEAST:
        return None
    x, y = (ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None
