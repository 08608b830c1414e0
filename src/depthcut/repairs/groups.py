"""Which kept sublayers a repair goes through, and where each stands in the dense and in the pruned model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from depthcut.model.stream import DecoderStream
from depthcut.model.sublayers import missing_units
from depthcut.types import Unit


@dataclass(frozen=True)
class Group:
    """Kept sublayers that are entered together: one, or those of a block whose branches are parallel.

    Attributes:
        dense: the units in the dense model.
        pruned: the same units in the pruned one.
        dense_stop: position in the dense model where the next group begins.
        pruned_start, pruned_stop: positions in the pruned model, likewise.
        before_removal: whether something was removed from where it is to where the next group begins.
        after_removal: whether something was removed before it.
    """

    dense: tuple[Unit, ...]
    pruned: tuple[Unit, ...]
    dense_stop: int
    pruned_start: int
    pruned_stop: int
    before_removal: bool
    after_removal: bool


def find_groups(dense: DecoderStream, pruned: DecoderStream, removed: Collection[Unit]) -> list[Group]:
    """All kept sublayers, front to back."""
    removed = frozenset(removed)
    missing = missing_units(pruned.model.config)
    kept = [unit for unit in dense.units if unit not in removed]
    present = [unit for unit in pruned.units if unit not in missing]
    pairs = list(zip(kept, present, strict=True))
    per_block = len(dense.architecture.branches)
    groups: list[list[tuple[Unit, Unit]]] = []
    for pair in pairs:
        if dense.architecture.parallel and groups and groups[-1][0][0].layer == pair[0].layer:
            groups[-1].append(pair)
        else:
            groups.append([pair])

    def start(stream: DecoderStream, unit: Unit) -> int:
        position = stream.units.index(unit)
        return position - position % per_block if dense.architecture.parallel else position

    found: list[Group] = []
    for index, group in enumerate(groups):
        following = groups[index + 1][0] if index + 1 < len(groups) else None
        dense_start = start(dense, group[0][0])
        dense_stop = start(dense, following[0]) if following else len(dense.units)
        found.append(
            Group(
                dense=tuple(pair[0] for pair in group),
                pruned=tuple(pair[1] for pair in group),
                dense_stop=dense_stop,
                pruned_start=start(pruned, group[0][1]),
                pruned_stop=start(pruned, following[1]) if following else len(pruned.units),
                before_removal=bool(removed.intersection(dense.units[dense_start:dense_stop])),
                after_removal=bool(removed.intersection(dense.units[:dense_start])),
            )
        )
    return found
