"""The blocks that the kept sublayers form: each attention is paired with the feed-forward sublayer that follows it.

A removal of any adjacent pairs (A·F or F·A) leaves whole blocks. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from depthcut.model.branches import Architecture
from depthcut.types import InputError, Unit


@dataclass(frozen=True)
class PackedBlock:
    """Where the sublayers of a block of the pruned model come from: indices of dense blocks.

    Attributes:
        sources: by kind of unit; a kind that is missing was removed.
    """

    sources: dict[str, int]

    def source(self, kind: str) -> int:
        """The block that per-layer configuration of this kind is taken from."""
        return self.sources.get(kind, next(iter(self.sources.values())))


def pack(units: Sequence[Unit], removed: Collection[Unit], architecture: Architecture) -> list[PackedBlock]:
    """Joins the kept sublayers, in order of execution, into as few blocks as possible.

    Where branches cannot be paired anew (they read the same stream) they stay where they are.
    """
    order: list[str] = list(architecture.branches)
    packed: list[PackedBlock] = []
    for unit in sorted(set(units) - set(removed)):
        last = packed[-1].sources if packed else {}
        fits = bool(last) and all(order.index(kind) < order.index(unit.kind) for kind in last)
        if not architecture.pairs:
            fits = unit.layer in last.values()
        if fits:
            last[unit.kind] = unit.layer
        else:
            packed.append(PackedBlock({unit.kind: unit.layer}))
    return packed


def is_dense(packed: Sequence[PackedBlock], architecture: Architecture) -> bool:
    """Whether every block is whole, so that any engine runs the checkpoint."""
    return all(len(block.sources) == len(architecture.branches) for block in packed)


def check_units(architecture: Architecture, num_blocks: int, removed: Collection[Unit]) -> None:
    """Checks that the units are of a model with that many blocks, and that enough remains.

    Raises:
        InputError: a unit is not of this model, or nothing or no attention would remain.
    """
    units = architecture.units(num_blocks)
    unknown = sorted(set(removed) - set(units))
    if unknown:
        raise InputError(f"{unknown[0]} is no unit of this model: it has {units[0]} to {units[-1]}")
    kept = set(units) - set(removed)
    if not kept:
        raise InputError("nothing would remain: remove fewer units")
    if "attn" in architecture.branches and not any(unit.kind == "attn" for unit in kept):
        raise InputError("no attention would remain, and a model without any cannot keep track of what it has read")
