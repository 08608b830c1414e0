"""Dense and pruned model run side by side, front to back, while new weights are fitted to kept sublayers.

`refit.py` says what they are fitted to and why. Groups are left one after the other; memory holds one stream of each
model, or a file does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from depthcut.model.stream import Batch, DecoderStream, Pass
from depthcut.model.watch import Call
from depthcut.repairs import Damage
from depthcut.repairs.batches import TextBatches
from depthcut.repairs.groups import Group, find_groups
from depthcut.repairs.moments import Moments, held_out_sequences
from depthcut.repairs.projections import (
    calls_of,
    gain_after,
    is_experts,
    lacking,
    maps_that_read,
    normed,
)
from depthcut.repairs.rooms import Rooms
from depthcut.repairs.writers import MapChange, Writers, find_writers, has_experts, writing
from depthcut.types import Unit

MOST_STREAMS = 7
"""Streams of all sequences that exist together: the dense one at three positions, the pruned one at two; what experts
are given and what they would have to add."""

STREAMS_OF_EXPERTS = 2

FLOAT32_RIDGE = 1e-3
"""From this ridge on, relative to the mean energy of the inputs, the rounding of float32 in their moments is hidden."""


@dataclass
class WeightChange:
    """New weights for linear maps, made and unmade at will.

    Attributes:
        maps: each with what its matrix changes by, (outputs, inputs), or that of every expert.
    """

    maps: list[MapChange]

    def __post_init__(self) -> None:
        self._before = [weight.matrix for weight, _ in self.maps]

    def make(self, step: float = 1.0) -> None:
        """Replaces the matrices by those before plus a share of the change."""
        for (weight, change), before in zip(self.maps, self._before, strict=True):
            weight.replace(before + step * change.to(before))

    def unmake(self) -> None:
        for (weight, _), before in zip(self.maps, self._before, strict=True):
            weight.replace(before)


class FrontToBack:
    """Both models run side by side, one group of sublayers at a time; memory holds one stream of each.

    Args:
        pruned: repaired in place: its modules change, its tensors are replaced.
        tokens_per_input: tokens that have to reach an expert, for each input of its down projection.

    Attributes:
        last_cut: position in the dense model where the last removed run ends, known once groups are asked for.
        experts: by dense units, how many were solved and how many left alone, since too few tokens reach them.
    """

    last_cut = 0

    def __init__(
        self, damage: Damage, pruned: PreTrainedModel, ridges: Sequence[float], tokens_per_input: float
    ) -> None:
        self.damage, self.dense = damage, damage.dense
        self.pruned = DecoderStream(pruned, self.dense.architecture)
        self.ridges, self.tokens_per_input = ridges, tokens_per_input
        self.experts: dict[tuple[Unit, ...], tuple[int, int]] = {}
        self._precise = self.dense.model.dtype.itemsize > 2 and min(ridges) < FLOAT32_RIDGE
        self._batches = TextBatches(damage.text, damage.batch_size)
        self._held_out = held_out_sequences(len(damage.text.input_ids))

    def __enter__(self) -> FrontToBack:
        experts = any(map(is_experts, self.pruned.model.modules()))
        self._rooms = Rooms(self.damage, MOST_STREAMS if experts else MOST_STREAMS - STREAMS_OF_EXPERTS)
        self._dense_streams: dict[int, torch.Tensor] = {}
        self._pruned_streams = self._rooms.take()
        self._left: torch.Tensor | None = None
        return self

    def __exit__(self, *_: object) -> None:
        del self._dense_streams, self._pruned_streams, self._left
        self._rooms.close()

    def groups(self) -> Iterator[tuple[Group, Group | None]]:
        """Yields the groups next to removed runs, in order; with a group, the following one where that stands directly
        before a removed run, else None. The caller leaves each group by `advance` or `leave`.
        """
        found = find_groups(self.dense, self.pruned, self.damage.removed)
        cuts = [group if group.before_removal else None for group in found[1:]] + [None]
        concerned = [
            (group, cut)
            for group, cut in zip(found, cuts, strict=True)
            if cut or group.before_removal or group.after_removal
        ]
        if not concerned:
            return
        first = concerned[0][0]
        self.last_cut = max((group.dense_stop for group in found if group.before_removal), default=0)
        begin = self.dense.units.index(first.dense[0])
        if self.dense.architecture.parallel:
            begin -= begin % len(self.dense.architecture.branches)
        batches = list(self._batches.of(self.dense))
        self._dense_streams[begin] = self._rooms.take()
        for rows, batch, stream in self._dense_run(batches, 0, begin):
            self._dense_streams[begin][rows] = stream
            # What was removed before the first kept sublayer was there in the dense model.
            self._pruned_streams[rows] = batch.embedded if first.after_removal else stream
        num_left = len(concerned)
        try:
            for group, cut in concerned:
                yield group, cut
                num_left -= 1
                self.damage.advance(100 / len(concerned))
        finally:
            self.damage.advance(100 * num_left / len(concerned))

    def _run(self, group: Group, rows: slice, batch: Batch) -> torch.Tensor:
        """The pruned stream after a group."""
        entering = self._pruned_streams[rows].to(batch.embedded.device)
        return self.pruned.run(batch, start=group.pruned_start, stop=group.pruned_stop, stream=entering)

    def advance(self, group: Group) -> None:
        """Leaves a group as it is."""
        self.leave(group, changed=True)

    def leave(self, group: Group, *, changed: bool) -> None:
        """Goes on to where the next group begins.

        Args:
            changed: whether the group is another than when `fit_writes` last ran it.
        """
        self._dense_at(group.dense_stop)
        for position in [position for position in self._dense_streams if position < group.dense_stop]:
            self._rooms.give_back(self._dense_streams.pop(position))
        if changed or self._left is None:
            for rows, batch in self._batches.of(self.pruned):
                self._pruned_streams[rows] = self._run(group, rows, batch)
        else:
            self._pruned_streams, self._left = self._left, self._pruned_streams
        if self._left is not None:
            self._rooms.give_back(self._left)
            self._left = None

    def _dense_at(self, position: int) -> torch.Tensor:
        """The dense stream that enters a position; what is behind the next group is kept until that is left."""
        if position not in self._dense_streams:
            begin = max(start for start in self._dense_streams if start < position)
            reached = self._rooms.take()
            for rows, _, stream in self._dense_run(list(self._batches.of(self.dense)), begin, position):
                reached[rows] = stream
            self._dense_streams[position] = reached
        return self._dense_streams[position]

    def _dense_run(
        self, batches: Sequence[tuple[slice, Batch]], begin: int, position: int
    ) -> Iterator[tuple[slice, Batch, torch.Tensor]]:
        """The dense stream of every batch at a position, run from another one on, as many together as there is room."""
        for together in self.dense.together(len(batches), 4 * batches[0][1].embedded.nbytes):
            part = [batches[place] for place in together]
            kept = self._dense_streams[begin] if begin else None
            entering = [None if kept is None else kept[rows].to(batch.embedded.device) for rows, batch in part]
            passes = [
                Pass(batch, start=begin, stop=position, stream=stream)
                for (_, batch), stream in zip(part, entering, strict=True)
            ]
            for (rows, batch), stream in zip(part, self.dense.run_together(passes), strict=True):
                yield rows, batch, stream

    def _sums(self, num_inputs: int, num_targets: int) -> Moments:
        """Moments, on an accelerator that has to hold paged weights as well only where they take little of it."""
        pager = self.dense.pager
        room = None if pager is None or pager.device.type == "cpu" else pager.activations
        return Moments(num_inputs, num_targets, precise=self._precise, room=room)

    def _add(
        self,
        moments: Moments,
        rows: slice,
        batch: Batch,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """Adds the tokens of a batch, (sequences, length, ...) each, that are no pads."""
        moments.add_sequences(inputs, targets, weights, batch.token_mask, self._held_out[rows])

    def _solve(self, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """`Moments.solve`, after all paged weights have been dropped from memory to make room."""
        pager = self.dense.pager
        if pager is not None and pager.device.type == "cpu":
            pager.let_all_go()
        return moments.solve(self.ridges)

    def fit_reads(self, group: Group) -> WeightChange:
        """The maps that read the stream, each times the map from the pruned normed stream to the dense one."""
        return self._batches.whole(self.pruned, lambda: self._fit_reads(group))

    def _fit_reads(self, group: Group) -> WeightChange:
        maps: list[MapChange] = []
        dense_streams = self._dense_streams[min(self._dense_streams)]
        for unit in group.pruned:
            block = self.pruned.blocks[unit.layer]
            branch = self.pruned.architecture.branches[unit.kind].of(block)
            if not branch.projection and not has_experts(block, branch):
                continue
            width = self._pruned_streams.shape[-1]
            moments = self._sums(width, width)
            for rows, batch in self._batches.of(self.pruned):
                device = batch.embedded.device
                read, meant = (
                    normed(block, branch, streams[rows].to(device)) for streams in (self._pruned_streams, dense_streams)
                )
                self._add(moments, rows, batch, read, meant - read, torch.ones(read.shape[:2], device=device))
            change, _ = self._solve(moments)
            rows, batch = next(self._batches.of(self.pruned))
            parts = [getattr(block, name) for name in ((*branch.leading, branch.core)[0], *branch.beside)]
            with maps_that_read(parts) as readers:
                self._run(group, rows, batch)
            maps += [(weight, weight.matrix @ change.to(weight.matrix)) for weight in readers]
        return WeightChange(maps)

    def fit_writes(
        self, group: Group, *, widest: bool, cut: Group | None = None
    ) -> tuple[WeightChange, dict[str, float]]:
        """Solves the output projections of a group for the stream after it, or after a group that follows.

        Args:
            widest: whether a projection may change in any way, where memory suffices to solve for that; else only by a
                map of what it gave.
            cut: the group that follows.

        Returns:
            The change, and by dense unit the share of the error on held-out tokens that it leaves.
        """
        return self._batches.whole(self.pruned, lambda: self._fit_writes(group, widest=widest, cut=cut))

    def _fit_writes(self, group: Group, *, widest: bool, cut: Group | None) -> tuple[WeightChange, dict[str, float]]:
        blocks = [self.pruned.blocks[unit.layer] for unit in group.pruned]
        branches = [
            self.pruned.architecture.branches[unit.kind].of(block)
            for unit, block in zip(group.pruned, blocks, strict=True)
        ]
        gain = gain_after(blocks[0], branches[0], self._pruned_streams.shape[-1])
        found = [
            find_writers(block, branch, len(gain), lambda: self._run(group, *next(self._batches.of(self.pruned))))
            for block, branch in zip(blocks, branches, strict=True)
        ]
        modules = [module for writers in found for module in writers]
        if not all(found) or sum(map(is_experts, modules)) > 1:
            return WeightChange([]), {}
        widths = [weight.matrix.shape[-1] for weight in map(writing, modules)]
        together = sum(width for width, module in zip(widths, modules, strict=True) if not is_experts(module))
        room = self.damage.solving_bytes
        widest = widest and (room is None or Moments.bytes(max(together, *widths), len(gain)) <= room)
        dense_streams = self._dense_at(group.dense_stop)
        if cut is not None:
            dense_streams = self._dense_at(cut.dense_stop)
        elif self._left is None:
            self._left = self._rooms.take()
        rooms = [self._rooms.take() for _ in range(2 * any(map(is_experts, modules)))]
        writers = Writers(modules, gain, rooms, widest=widest, sums=self._sums)
        for rows, batch in self._batches.of(self.pruned):
            calls, added, after = self._watched(group, writers, rows, batch)
            if cut is not None:
                after = self.pruned.run(batch, start=cut.pruned_start, stop=cut.pruned_stop, stream=after)
            elif self._left is not None:
                self._left[rows] = after
            lacks = lacking(after, dense_streams[rows].to(after.device), gain.to(after.device))
            writers.add(calls, added, lacks, rows, batch.token_mask, self._held_out[rows])
        again = (
            (rows, *self._watched(group, writers, rows, batch)[:2]) for rows, batch in self._batches.of(self.pruned)
        )
        changes, share = writers.solve(self._solve, again, self.tokens_per_input)
        for taken in rooms:
            self._rooms.give_back(taken)
        if writers.solved is not None:
            self.experts[group.dense] = writers.solved.num_solved, writers.solved.num_left_alone
        return WeightChange(changes), {str(unit): share for unit in group.dense}

    def _watched(
        self, group: Group, writers: Writers, rows: slice, batch: Batch
    ) -> tuple[list[Call], torch.Tensor, torch.Tensor]:
        """The calls of what writes in a group, what it adds to the pruned stream, and the stream after it."""
        entering = self._pruned_streams[rows].to(batch.embedded.device)
        with calls_of(writers.modules) as calls:
            after = self._run(group, rows, batch)
        return calls, after - entering.to(after.device), after
