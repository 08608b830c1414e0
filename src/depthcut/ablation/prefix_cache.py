"""The prefix cache: hidden states of the base, the set removed so far, so that a candidate runs only later units.

Removing a unit does not change the units before it, so the hidden states that enter it are those of the base, bit for
bit. A position is an index into `DecoderStream.units`; the hidden states at a position are those that enter that unit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch

from depthcut.ablation.ledger import Key, Removed
from depthcut.ablation.memory import bytes_of_next, stride_that_fits
from depthcut.model.block_call import Visitor
from depthcut.model.branches import Architecture
from depthcut.model.shortage import offer
from depthcut.model.stream import Batch, DecoderStream, Pass
from depthcut.types import Unit


def units_per_position(architecture: Architecture) -> int:
    """Distance, in units, of the positions at which a pass can start."""
    return len(architecture.branches) if architecture.parallel else 1


class PrefixCache:
    """Hidden states of the base for every batch, at a grid of positions, and those of sets that may be the next base.

    Args:
        batches: by index; those of this process.
        budget: bytes; half of it is for the grid, an eighth for the sets that may be next.

    Attributes:
        base: the removed set whose hidden states are cached.
        stride: distance of the positions on the grid, in units.
    """

    def __init__(self, stream: DecoderStream, batches: dict[int, Batch], budget: int) -> None:
        self.stream, self.base = stream, Removed()
        self._batches = batches
        self._places = {unit: place for place, unit in enumerate(stream.units)}
        self._per_block = len(stream.architecture.branches)
        self._step = units_per_position(stream.architecture)
        self._kept: dict[int, dict[int, torch.Tensor]] = {index: {} for index in batches}
        self._passed: dict[Removed, dict[int, dict[int, torch.Tensor]]] = {}
        self._in_use: set[tuple[int, int]] = set()
        self.stride = stride_that_fits(self._stream_bytes, len(stream.units), self._step, budget)
        self._most_passed = bytes_of_next(self.most_bytes, budget)
        offer(self)

    @property
    def _stream_bytes(self) -> int:
        return sum(batch.embedded.nbytes for batch in self._batches.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory now."""
        return _bytes(self._kept) + sum(map(_bytes, self._passed.values()))

    @property
    def most_bytes(self) -> int:
        """Bytes of the whole grid."""
        return self._stream_bytes * len(self.stream.units) // self.stride

    def start(self, removed: Removed) -> int:
        """The position from which a set must run."""
        first = min((self._places[unit] for unit in removed ^ self.base), default=len(self.stream.units))
        # The first unit that differs need not run if it is removed, but a pass cannot start at every position.
        return first if first == len(self.stream.units) else self.stream.entry(first)

    def rebase(self, removed: Removed) -> int:
        """Makes a set the base; returns the position up to which cached hidden states stay valid."""
        start = self.start(removed)
        if removed == self.base:
            return start
        self.base = removed
        passed = self._passed.get(removed, {})
        self._passed = {}
        for index, kept in self._kept.items():
            valid = {position: states for position, states in kept.items() if position <= start}
            self._kept[index] = valid | passed.get(index, {})
        return start

    def run(self, removed: Removed, index: int, *, as_next: bool = False) -> tuple[torch.Tensor, int]:
        """A set's hidden states before the final norm for a batch, and the unit evaluations that this took.

        Args:
            as_next: cache the hidden states on the way, for the case that the set becomes the base.
        """
        start = self.start(removed)
        entering = self.entering(index, start)
        before = self.stream.unit_evaluations
        visit = self._keeping(removed, index) if as_next else None
        final = self.stream.run(self._batches[index], removed, start=start, stream=entering, visit=visit)
        self._make_room()
        return final, self.stream.unit_evaluations - before

    def dense(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states of the dense model before the final norm for some batches, run together; fills the cache."""
        visits = [partial(self._keep, self._kept[index]) for index in indices]
        passes = [Pass(self._batches[i], visit=visit) for i, visit in zip(indices, visits, strict=True)]
        return self.stream.run_together(passes)

    def entering(self, index: int, position: int) -> torch.Tensor:
        """A batch's hidden states at a position of the base, computed from the nearest cached position before it."""
        batch, kept = self._batches[index], self._kept[index]
        place = position if position in kept else self._nearest(kept, position)
        states = kept.get(place, batch.embedded)
        while place < position:
            stop = place + self._step if self.stream.entry(place + self._step) == place + self._step else position
            states = self.stream.run(batch, self.base, start=place, stop=stop, stream=states)
            place = stop
            if place % self.stride == 0 or place == position:
                kept[place] = states
        # Beside the grid only the position reached last is cached.
        for known in [known for known in kept if known % self.stride and known != position]:
            del kept[known]
        return states

    def _nearest(self, kept: Collection[int], position: int) -> int:
        """The last cached position, up to the given one, at which a pass can start."""
        return max((known for known in kept if known <= position and self.stream.entry(known) == known), default=0)

    def give_up(self) -> bool:
        """Gives up the sets that may be next, then every other position; returns whether anything was there."""
        if self._passed:
            self._passed, self._most_passed = {}, 0
            return True
        if self.stride >= len(self.stream.units):
            return False
        self.stride *= 2
        for index, kept in self._kept.items():
            for position in [position for position in kept if position % self.stride]:
                if (index, position) not in self._in_use:
                    del kept[position]
        return True

    def run_abreast(self, keys: Sequence[Key], *, as_next: bool = False) -> list[torch.Tensor]:
        """Hidden states of sets on batches before the final norm, all run together block by block. The base runs
        first, and each set starts from its hidden states at the first unit that differs.

        Args:
            as_next: as for `run`.
        """
        needed: dict[int, set[int]] = {}
        for removed, index in keys:
            needed.setdefault(index, set()).add(self.start(removed))
        self._in_use = {(index, position) for index, positions in needed.items() for position in positions}
        runs = [run for index, positions in needed.items() for run in self._run_of_base(index, positions)]
        num_of_base = len(runs)
        for removed, index in keys:
            start = self.start(removed)
            visit = self._keeping(removed, index) if as_next else None
            entering = partial(self._at, index, start)
            runs.append(Pass(self._batches[index], removed, start, stream=entering, visit=visit))
        finals = self.stream.run_together(runs)[num_of_base:]
        self._in_use = set()
        for index in needed:
            kept = self._kept[index]
            for position in [position for position in kept if position % self.stride]:
                del kept[position]
        self._make_room()
        return finals

    def _run_of_base(self, index: int, positions: set[int]) -> list[Pass]:
        """The pass over the base that caches the hidden states at these positions; empty if all are cached."""
        kept = self._kept[index]
        missing = positions - kept.keys() - {0}
        if not missing:
            return []
        nearest = self._nearest(kept, min(missing) - 1)
        visit = partial(self._keep, kept, positions=missing)
        return [Pass(self._batches[index], self.base, nearest, max(missing), kept.get(nearest), visit)]

    def _keeping(self, removed: Removed, index: int) -> Visitor:
        """A visitor that caches a set's hidden states on the grid; the set used last is dropped last."""
        self._passed[removed] = self._passed.pop(removed, {})
        return partial(self._keep, self._passed[removed].setdefault(index, {}))

    def _keep(
        self,
        kept: dict[int, torch.Tensor],
        unit: Unit | int,
        _: torch.Tensor,
        after: torch.Tensor,
        *,
        positions: Collection[int] = (),
    ) -> None:
        """Caches the hidden states of a pass on the grid, or at some positions and on the grid before them."""
        if isinstance(unit, int):
            position = (unit + 1) * self._per_block
        elif self._step > 1:
            return
        else:
            position = self._places[unit] + 1
        last = max(positions, default=len(self.stream.units))
        if position <= last and (position in positions or position % self.stride == 0):
            kept[position] = after

    def _make_room(self) -> None:
        """Drops sets that may be next until the others fit."""
        taken = {removed: _bytes(passed) for removed, passed in self._passed.items()}
        for removed in taken:
            if sum(taken[other] for other in self._passed) <= self._most_passed:
                return
            del self._passed[removed]

    def _at(self, index: int, position: int) -> torch.Tensor:
        return self._kept[index][position] if position else self._batches[index].embedded


def _bytes(kept: dict[int, dict[int, torch.Tensor]]) -> int:
    return sum(states.nbytes for of_batch in kept.values() for states in of_batch.values())
