"""A race of sets over more and more of the calibration text, which those leave that fall behind by more than noise.

Two sets are compared on the same sequences, so what counts is the noise of their difference. What is believed of a set
beforehand (from a look at excerpts, from an earlier round) is kept by sequence: where a sequence is run, its value
takes the place of what was believed, and what is believed of the others moves along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of the text, after which racers are compared."""
PRIOR_SEQUENCES = 2
"""How many sequences the noise that is expected counts for beside that which is seen."""


@dataclass
class Racer:
    """A set in a race.

    Attributes:
        removed: the set.
        believed: (sequences,) float64, by how much its objective exceeds the reference's; as measured where it was run.
        noise: standard deviation, over sequences, of a value around what is believed.
        weight: sequences that what is believed is worth.
        rate: what the increase is divided by before racers are compared.
        surprises: (sequences run so far,) values less what was believed of them.
    """

    removed: Removed
    believed: torch.Tensor
    noise: float
    weight: float
    rate: float = 1.0
    surprises: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @property
    def is_through(self) -> bool:
        """Whether it was run on all of the text."""
        return len(self.surprises) == len(self.believed)

    def see(self, values: torch.Tensor) -> None:
        """Takes in the next sequences: (sequences,) float64."""
        begin, end = len(self.surprises), len(self.surprises) + len(values)
        before = self._correction(begin)
        self.surprises = torch.cat([self.surprises, values - (self.believed[begin:end] - before)])
        self.believed = self.believed.clone()
        self.believed[begin:end] = values
        self.believed[end:] += self._correction(end) - before

    def _correction(self, count: int) -> float:
        """What the first surprises add to what is believed of all sequences that have not been run."""
        return float(self.surprises[:count].sum()) / (count + self.weight) if count else 0.0

    def mean(self, weights: torch.Tensor) -> float:
        """The increase per what it is divided by.

        Args:
            weights: (sequences,) share of each in the text.
        """
        return math.fsum((self.believed * weights).tolist()) / self.rate

    def error_against(self, other: Racer, weights: torch.Tensor) -> float:
        """Standard error of the difference of two means, from what surprised on the sequences that both have run."""
        count, left = len(self.surprises), len(weights) - len(self.surprises)
        if not left:
            return 0.0
        differences = self.surprises / self.rate - other.surprises[:count] / other.rate
        expected = (self.noise / self.rate) ** 2 / 2 + (other.noise / other.rate) ** 2 / 2
        seen = float((differences - differences.mean()).square().sum())
        variance = (seen + PRIOR_SEQUENCES * expected) / (count - 1 + PRIOR_SEQUENCES)
        share_left = float(weights[count:].sum())
        return share_left * math.sqrt(variance * (1 / (count + self.weight) + 1 / left))


def race(
    ablation: Ablation,
    racers: Sequence[Racer],
    reference: torch.Tensor,
    *,
    standard_errors: float,
    standing: Racer | None = None,
) -> list[Racer]:
    """Runs sets on more and more of the text. Costs one set on all of it, and the others as far as they keep up.

    Args:
        racers: in the order in which the first of equals wins.
        reference: (sequences,) the objective that increases are counted from.
        standard_errors: how many of the difference's a racer may be behind the best.
        standing: a set whose values are known, which they have to beat.

    Returns:
        Those that were run on all of the text.
    """
    sizes, weights = ablation.batch_sizes, ablation.weights
    ends = sorted({math.ceil(share * len(sizes)) for share in SHARES})
    left, begin = list(racers), 0
    while left and begin < len(sizes):
        alone = len(left) == 1 and standing is None
        end = len(sizes) if alone else min(end for end in ends if end > begin)
        rows = ablation.per_sequence([racer.removed for racer in left], range(begin, end), as_next=True)
        first = sum(sizes[:begin])
        for racer, row in zip(left, rows, strict=True):
            racer.see(row - reference[first : first + len(row)])
        begin = end
        if begin < len(sizes):
            best = min([*left, *([standing] if standing else [])], key=lambda racer: racer.mean(weights))
            least = best.mean(weights)
            left = [
                racer
                for racer in left
                if racer.mean(weights) - least <= standard_errors * racer.error_against(best, weights)
            ]
    return left
