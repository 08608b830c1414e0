"""The prefix cache: hidden states of the removed set so far (the base), so that candidates run only what comes after.

Removing a unit changes nothing before it, so the hidden states that enter it are those of the base. That is exact: the
same blocks see the same numbers. A position is a place in `DecoderStream.units`; its hidden states enter that unit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch

from depthcut.ablation.ledger import Key, Removed
from depthcut.ablation.memory import stride_that_fits
from depthcut.model.branches import Architecture
from depthcut.model.stream import Batch, DecoderStream, Pass
from depthcut.types import Unit


def units_per_position(architecture: Architecture) -> int:
    """Units from one position to the next that a pass can be entered at."""
    return len(architecture.branches) if architecture.parallel else 1


class PrefixCache:
    """Hidden states of the base, batch by batch, on a grid of positions.

    Args:
        batches: by index; those of this process.
        budget: bytes, half of which the grid may take.

    Attributes:
        base: the removed set that is kept.
        stride: units from one position of the grid to the next.
    """

    def __init__(self, stream: DecoderStream, batches: dict[int, Batch], budget: int) -> None:
        self.stream, self.base = stream, Removed()
        self._batches = batches
        self._places = {unit: place for place, unit in enumerate(stream.units)}
        self._per_block = len(stream.architecture.branches)
        self._step = units_per_position(stream.architecture)
        self._kept: dict[int, dict[int, torch.Tensor]] = {index: {} for index in batches}
        self.stride = stride_that_fits(self._stream_bytes, len(stream.units), self._step, budget)

    @property
    def _stream_bytes(self) -> int:
        return sum(batch.embedded.nbytes for batch in self._batches.values())

    @property
    def kept_bytes(self) -> int:
        """In memory now."""
        return sum(states.nbytes for kept in self._kept.values() for states in kept.values())

    @property
    def most_bytes(self) -> int:
        """Of the whole grid."""
        return self._stream_bytes * len(self.stream.units) // self.stride

    def start(self, removed: Removed) -> int:
        """The position that a set has to be run from."""
        first = min((self._places[unit] for unit in removed ^ self.base), default=len(self.stream.units))
        # What is removed now itself needs no running, but not every place can be entered.
        return first if first == len(self.stream.units) else self.stream.entry(first)

    def rebase(self, removed: Removed) -> int:
        """Makes a set the base, and returns the position up to which all that is kept stays valid."""
        start = self.start(removed)
        self.base = removed
        for index, kept in self._kept.items():
            self._kept[index] = {position: states for position, states in kept.items() if position <= start}
        return start

    def run(self, removed: Removed, index: int) -> tuple[torch.Tensor, int]:
        """A set's hidden states before the final norm for a batch, and the unit evaluations that it took."""
        start = self.start(removed)
        entering = self.entering(index, start)
        before = self.stream.unit_evaluations
        final = self.stream.run(self._batches[index], removed, start=start, stream=entering)
        return final, self.stream.unit_evaluations - before

    def entering(self, index: int, position: int) -> torch.Tensor:
        """A batch's hidden states entering a position of the base, computed from the nearest kept position before
        it.
        """
        batch, kept = self._batches[index], self._kept[index]
        place = position if position in kept else self._nearest(kept, position)
        states = kept.get(place, batch.embedded)
        while place < position:
            stop = place + self._step if self.stream.entry(place + self._step) == place + self._step else position
            states = self.stream.run(batch, self.base, start=place, stop=stop, stream=states)
            place = stop
            if place % self.stride == 0 or place == position:
                kept[place] = states
        # What was walked to is kept only while it is the latest, unless it lies on the grid.
        for known in [known for known in kept if known % self.stride and known != position]:
            del kept[known]
        return states

    def _nearest(self, kept: Collection[int], position: int) -> int:
        """The last of the kept positions up to one that a pass can be entered at."""
        return max((known for known in kept if known <= position and self.stream.entry(known) == known), default=0)

    def run_abreast(self, keys: Sequence[Key]) -> list[torch.Tensor]:
        """Hidden states of sets on batches before the final norm. All run side by side, block by block; each set begins
        at the base's hidden states where it first differs from the base.
        """
        needed: dict[int, set[int]] = {}
        for removed, index in keys:
            needed.setdefault(index, set()).add(self.start(removed))
        runs = [run for index, positions in needed.items() for run in self._run_of_base(index, positions)]
        num_of_base = len(runs)
        for removed, index in keys:
            start = self.start(removed)
            runs.append(Pass(self._batches[index], removed, start, stream=partial(self._at, index, start)))
        finals = self.stream.run_together(runs)[num_of_base:]
        for index in needed:
            kept = self._kept[index]
            for position in [position for position in kept if position % self.stride]:
                del kept[position]
        return finals

    def _run_of_base(self, index: int, positions: set[int]) -> list[Pass]:
        """The pass over the base that keeps the hidden states entering these positions; empty where all are kept."""
        kept = self._kept[index]
        missing = positions - kept.keys() - {0}
        if not missing:
            return []
        nearest = self._nearest(kept, min(missing) - 1)
        visit = partial(self._keep_passing, index, missing)
        return [Pass(self._batches[index], self.base, nearest, max(missing), kept.get(nearest), visit)]

    def _keep_passing(
        self, index: int, positions: Collection[int], unit: Unit | int, _: torch.Tensor, after: torch.Tensor
    ) -> None:
        """A visitor: keeps the hidden states entering `positions` and the positions of the grid."""
        if isinstance(unit, int):
            position = (unit + 1) * self._per_block
        elif self.stream.architecture.parallel:
            return
        else:
            position = self._places[unit] + 1
        if position <= max(positions) and (position in positions or position % self.stride == 0):
            self._kept[index][position] = after

    def _at(self, index: int, position: int) -> torch.Tensor:
        return self._kept[index][position] if position else self._batches[index].embedded
