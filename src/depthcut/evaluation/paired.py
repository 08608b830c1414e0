"""Two models on the same items: means, differences and what is retained, with paired standard errors.

A score is a weighted mean over strata: one stratum for a task, one a subtask for a group, one a task for an average
over tasks. Errors of strata are independent, so their squares add with the squares of the weights. Within a stratum
the two models answered the same items, so the error of a difference is that of the per-item differences, which is
smaller than what two separate errors would give. Float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIFFERENCE = "/difference"
RETAINED = "/retained"
"""What follows a measurement's name where it is about two models: other minus dense, and the share that is left."""

BOOTSTRAP_DRAWS = 1000
CHANCE_ERRORS = 2.0
"""Standard errors above chance that a dense score needs; below that, a retained share would be noise."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, None where one item or none allows no estimate."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Stratum:
    """One task's items.

    Attributes:
        weight: of this stratum's mean in the score; the weights of a score sum to 1.
        dense: (items,), the dense model's value of each item.
        other: (items,), the other model's, in the same order.
        chance: (items,), what guessing would give on average, where that is known.
    """

    weight: float
    dense: NDArray[np.float64]
    other: NDArray[np.float64]
    chance: NDArray[np.float64] | None = None

    def scaled(self, factor: float) -> Stratum:
        return Stratum(self.weight * factor, self.dense, self.other, self.chance)


def stratum(
    dense: Sequence[float], other: Sequence[float], chance: Sequence[float] | None = None, weight: float = 1.0
) -> Stratum:
    """One task's items from plain numbers."""
    guess = None if chance is None else np.asarray(chance, dtype=np.float64)
    return Stratum(weight, np.asarray(dense, dtype=np.float64), np.asarray(other, dtype=np.float64), guess)


def averaged(scores: Sequence[Sequence[Stratum]]) -> tuple[Stratum, ...]:
    """The unweighted mean of several scores, as one score."""
    return tuple(part.scaled(1 / len(scores)) for score in scores for part in score)


def dense_score(strata: Sequence[Stratum]) -> Estimate:
    """The dense model's score."""
    return _weighted(strata, lambda part: part.dense)


def other_score(strata: Sequence[Stratum]) -> Estimate:
    """The other model's score."""
    return _weighted(strata, lambda part: part.other)


def difference(strata: Sequence[Stratum]) -> Estimate:
    """Other minus dense; the error is that of the per-item differences."""
    return _weighted(strata, lambda part: part.other - part.dense)


def chance_level(strata: Sequence[Stratum]) -> float | None:
    """What guessing would give: a mean in which strata of unknown chance count as 0; None where none is known."""
    known = [part.weight * float(part.chance.mean()) for part in strata if part.chance is not None]
    return sum(known) if known else None


def retained(strata: Sequence[Stratum]) -> Estimate | None:
    """The share of the dense score above chance that is left; chance counts as 0 where it is not known.

    The error is that of a ratio of means by linearisation: of the per-item residuals (other - chance) - share x
    (dense - chance), divided by the dense score above chance.

    Returns:
        None where the dense model is not clearly above chance, so that the share would divide noise by noise.
    """
    above = [(part.weight, part.dense - _guess(part), part.other - _guess(part)) for part in strata]
    base = _weighted_arrays([(weight, dense) for weight, dense, _ in above])
    if base.value <= CHANCE_ERRORS * (base.stderr or 0):
        return None
    share = _weighted_arrays([(weight, other) for weight, _, other in above]).value / base.value
    residual = _weighted_arrays([(weight, other - share * dense) for weight, dense, other in above])
    return Estimate(share, None if residual.stderr is None else residual.stderr / base.value)


def _guess(part: Stratum) -> NDArray[np.float64]:
    return np.zeros_like(part.dense) if part.chance is None else part.chance


def bootstrap(
    dense: Sequence[Any], other: Sequence[Any], aggregate: Callable[[list[Any]], float], seed: int = 0
) -> tuple[Estimate, Estimate, Estimate]:
    """Dense score, other score and other minus dense of a metric that is no mean over items, such as a perplexity.

    Errors are standard deviations over draws of items with replacement, the same draw for both models.

    Args:
        aggregate: the metric from the items' values.
    """
    values = (float(aggregate(list(dense))), float(aggregate(list(other))))
    point = (*values, values[1] - values[0])
    if len(dense) < 2:
        return tuple(Estimate(value, None) for value in point)  # type: ignore[return-value]
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(BOOTSTRAP_DRAWS):
        chosen = generator.integers(len(dense), size=len(dense))
        first, second = (float(aggregate([items[index] for index in chosen])) for items in (dense, other))
        draws.append((first, second, second - first))
    errors = np.asarray(draws).std(axis=0, ddof=1)
    return tuple(Estimate(value, float(error)) for value, error in zip(point, errors, strict=True))  # type: ignore[return-value]


def _weighted(strata: Sequence[Stratum], values: Callable[[Stratum], NDArray[np.float64]]) -> Estimate:
    return _weighted_arrays([(part.weight, values(part)) for part in strata])


def _weighted_arrays(parts: Sequence[tuple[float, NDArray[np.float64]]]) -> Estimate:
    value = sum(weight * float(items.mean()) for weight, items in parts)
    if any(len(items) < 2 for _, items in parts):
        return Estimate(value, None)
    squares = sum((weight * float(items.std(ddof=1))) ** 2 / len(items) for weight, items in parts)
    return Estimate(value, math.sqrt(squares))
