"""The damage of removing each unit alone, item by item; used by two studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from depthcut.calibration import Samples
from depthcut.model.branches import Architecture
from depthcut.process.progress import progress
from depthcut.run.plan import make_ablation
from depthcut.run.session import Loaded
from depthcut.studies.ranks import spearman
from depthcut.types import Removal, Unit

NUM_HALVINGS = 50


@dataclass(frozen=True)
class Importances:
    """Damage by each removal alone.

    Attributes:
        removals: units, or all the units of a block.
        items: (removals, sequences or questions), float64: the objective without the removal minus that of the whole
            model.
        weights: (sequences or questions,), which sum to 1.
    """

    removals: tuple[Removal, ...]
    items: torch.Tensor
    weights: torch.Tensor

    @property
    def names(self) -> list[str]:
        """`17` for a block, `17.attn` for a sublayer."""
        return [str(removal[0]) if len(removal) == 1 else str(removal[0].layer) for removal in self.removals]

    @property
    def values(self) -> list[float]:
        """The mean over items, larger = more damage."""
        return (self.items @ self.weights).tolist()

    @property
    def standard_errors(self) -> list[float | None]:
        """Of the means, over the items' differences; None of one item."""
        num_items = self.items.shape[1]
        if num_items < 2:
            return [None] * len(self.removals)
        return (self.items.std(dim=1) / math.sqrt(num_items)).tolist()

    @property
    def reliability(self) -> float | None:
        """About the rank correlation with itself on as many other items; None where there is none.

        Two measures cannot agree better than each does with itself. It is the mean correlation of random halves, with
        what twice as many items would give by the formula of Spearman and Brown.
        """
        num_items = self.items.shape[1]
        if num_items < 2:
            return None
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(NUM_HALVINGS):
            order = torch.randperm(num_items, generator=generator)
            correlation = spearman(*(self._values_on(half) for half in (order[::2], order[1::2])))
            found.append(0.0 if correlation is None else correlation)
        mean = sum(found) / len(found)
        return 2 * mean / (1 + mean) if mean > 0 else mean

    def _values_on(self, items: torch.Tensor) -> list[float]:
        weights = self.weights[items]
        return (self.items[:, items] @ (weights / weights.sum())).tolist()

    def least(self, count: int) -> list[Removal]:
        """The removals of least damage; of equals the deeper one first."""
        order = sorted(
            zip(self.values, self.removals, strict=True), key=lambda pair: (pair[0], -pair[1][0].layer, pair[1][0].kind)
        )
        return [removal for _, removal in order[:count]]


def leave_one_out(
    loaded: Loaded, text: Samples, objective: str, removals: Sequence[Removal], journal: Path
) -> Importances:
    """Evaluates every removal alone, and the whole model; what a killed process found is not evaluated again."""
    ablation = make_ablation(loaded, text, objective, journal)
    sets: list[frozenset[Unit]] = [frozenset(), *map(frozenset, removals)]
    with progress(f"leaving one out, {objective}", ablation.num_batches) as advance:
        found = ablation.per_sequence(sets, range(ablation.num_batches), advance)
    return Importances(tuple(removals), found[1:] - found[0], ablation.weights)


def single_removals(architecture: Architecture, num_blocks: int, unit: str) -> list[Removal]:
    """Every block, every sublayer, or every sublayer of a kind, in order of execution."""
    units = architecture.units(num_blocks)
    if unit == "block":
        return [tuple(each for each in units if each.layer == layer) for layer in range(num_blocks)]
    return [(each,) for each in units if unit in ("sublayer", each.kind)]
