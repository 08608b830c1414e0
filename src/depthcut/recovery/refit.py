"""Repairs in closed form, in the stock architecture and without a parameter more: kept projections are solved anew so
that the pruned stream meets the dense stream again.

Both models are run side by side, front to back, on text of which every fourth sequence is held out. For every kept
sublayer after the first removed one

1. the maps that read the stream are multiplied with the linear map that takes the normed pruned stream to the normed
   dense one: what the sublayer reads is as near as a linear map can bring it to what it read before;
2. the output projection is solved so that what it adds leads to the dense stream entering the next kept sublayer, by
   ridge regression of what is missing, with each token weighted by one over the squared length of its stream, since
   the norms that follow divide by that.

How strongly each output channel is held to its old weight is decided on the held-out tokens (`moments.py`), also that
it stays as it is. `linear` is the special case of ReplaceMe (arXiv 2505.02819, section 2.2): only before a removed
window, and only a map of what the projection gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthcut.model.architectures import Architecture, Branch
from depthcut.model.stream import Batch, DecoderStream
from depthcut.model.sublayers import missing_units
from depthcut.recovery import RECOVERIES, Damage, Repaired
from depthcut.recovery.moments import FITTED, HELD_OUT, Moments, held_out_sequences
from depthcut.surgery import twin
from depthcut.types import Unit


@dataclass(frozen=True)
class Refit:
    """Output projections of all kept sublayers after the first removed one, and what they read.

    Costs about three forward passes of the decoder over the text, and the moments.

    Attributes:
        reads: also multiply the maps that read the stream.
        ridges: strengths to choose from, relative to the mean energy of the inputs.
    """

    reads: bool = True
    ridges: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Takes every family."""

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        with _FrontToBack(damage, twin(pruned), self.ridges) as sweep:
            units = {}
            for group in sweep.groups():
                if self.reads and group.after_removal:
                    sweep.refit_reads(group)
                units.update(sweep.refit_writes(group, widest=True))
            return Repaired(sweep.pruned.model, units)


@dataclass(frozen=True)
class LinearMap:
    """A linear map of what the sublayer before each removed window adds, folded into its output projection.

    Attributes:
        ridges: strengths to choose from, relative to the mean energy of what the projection gave.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.1, 1.0)
    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Takes every family."""

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        with _FrontToBack(damage, twin(pruned), self.ridges) as sweep:
            units = {}
            for group in sweep.groups():
                if group.before_removal:
                    units.update(sweep.refit_writes(group, widest=False))
                else:
                    sweep.advance(group)
            return Repaired(sweep.pruned.model, units)


@dataclass(frozen=True)
class _Group:
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


class _FrontToBack:
    """Both models run side by side, one group of sublayers at a time; memory holds one stream of each.

    Args:
        pruned: repaired in place: its modules change, its tensors are replaced.
    """

    def __init__(self, damage: Damage, pruned: PreTrainedModel, ridges: Sequence[float]) -> None:
        self.damage, self.dense = damage, damage.dense
        self.pruned = DecoderStream(pruned, self.dense.architecture)
        self.ridges = ridges
        samples = damage.text
        self._rows = [
            slice(begin, begin + damage.batch_size) for begin in range(0, len(samples.input_ids), damage.batch_size)
        ]
        self._held_out = held_out_sequences(len(samples.input_ids))

    def __enter__(self) -> _FrontToBack:
        self._scratch = TemporaryDirectory(ignore_cleanup_errors=True)
        shape = (*self.damage.text.input_ids.shape, self.dense.model.config.get_text_config().hidden_size)
        self._dense_streams, self._pruned_streams = (self._storage(name, shape) for name in ("dense", "pruned"))
        return self

    def __exit__(self, *_: object) -> None:
        del self._dense_streams, self._pruned_streams
        self._scratch.cleanup()

    def _storage(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Room for a stream of all sequences; in a file where memory is too small for it."""
        dtype, count = self.dense.model.dtype, torch.Size(shape).numel()
        if 2 * count * dtype.itemsize <= self.damage.memory_budget:
            return torch.empty(shape, dtype=dtype)
        file = Path(self._scratch.name) / name
        return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)

    def groups(self) -> Iterator[_Group]:
        """Groups from the last one before the first removed unit on; each must be left by one of the other methods."""
        found = list(self._find_groups())
        concerned = [group for group in found if group.before_removal or group.after_removal]
        if not concerned:
            return
        begin = self.dense.units.index(concerned[0].dense[0])
        if self.dense.architecture.parallel:
            begin -= begin % len(self.dense.architecture.branches)
        for rows, batch in self._batches(self.dense):
            entering = batch.embedded if concerned[0].after_removal else self.dense.run(batch, stop=begin)
            self._pruned_streams[rows] = entering
            # What was removed before the first kept sublayer was there in the dense model.
            self._dense_streams[rows] = self.dense.run(batch, stop=begin)
        self._dense_at = begin
        for group in concerned:
            yield group
            self.damage.advance(100 / len(concerned))

    def _find_groups(self) -> Iterator[_Group]:
        dense, pruned, removed = self.dense, self.pruned, self.damage.removed
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

        for index, group in enumerate(groups):
            following = groups[index + 1][0] if index + 1 < len(groups) else None
            dense_start = start(dense, group[0][0])
            dense_stop = start(dense, following[0]) if following else len(dense.units)
            yield _Group(
                dense=tuple(pair[0] for pair in group),
                pruned=tuple(pair[1] for pair in group),
                dense_stop=dense_stop,
                pruned_start=start(pruned, group[0][1]),
                pruned_stop=start(pruned, following[1]) if following else len(pruned.units),
                before_removal=bool(removed.intersection(dense.units[dense_start:dense_stop])),
                after_removal=bool(removed.intersection(dense.units[:dense_start])),
            )

    def _batches(self, stream: DecoderStream) -> Iterator[tuple[slice, Batch]]:
        samples = self.damage.text
        for rows in self._rows:
            yield rows, stream.prepare(samples.input_ids[rows], samples.attention_mask[rows])

    def _run(self, group: _Group, rows: slice, batch: Batch) -> torch.Tensor:
        """The pruned stream after a group."""
        entering = self._pruned_streams[rows].to(batch.embedded.device)
        return self.pruned.run(batch, start=group.pruned_start, stop=group.pruned_stop, stream=entering)

    def advance(self, group: _Group) -> None:
        """Leaves a group as it is."""
        self._advance_dense(group)
        self._advance_pruned(group)

    def _advance_dense(self, group: _Group) -> None:
        for rows, batch in self._batches(self.dense):
            entering = self._dense_streams[rows].to(batch.embedded.device)
            self._dense_streams[rows] = self.dense.run(
                batch, start=self._dense_at, stop=group.dense_stop, stream=entering
            )
        self._dense_at = group.dense_stop

    def _advance_pruned(self, group: _Group) -> None:
        for rows, batch in self._batches(self.pruned):
            self._pruned_streams[rows] = self._run(group, rows, batch)

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
        for part in (FITTED, HELD_OUT):
            of_part = (self._held_out[rows] == (part == HELD_OUT)).to(batch.token_mask.device)
            chosen = batch.token_mask & of_part[:, None]
            moments.add(inputs[chosen], targets[chosen], weights[chosen], part)

    def refit_reads(self, group: _Group) -> None:
        """Multiplies the maps that read the stream with one that takes the pruned reading to the dense one."""
        for unit in group.pruned:
            block, branch = self.pruned.blocks[unit.layer], self.pruned.architecture.branches[unit.kind]
            width = self._dense_streams.shape[-1]
            moments = Moments(width, width)
            for rows, batch in self._batches(self.pruned):
                device = batch.embedded.device
                read, meant = (
                    _normed(block, branch, streams[rows].to(device))
                    for streams in (self._pruned_streams, self._dense_streams)
                )
                self._add(moments, rows, batch, read, meant - read, torch.ones(read.shape[:2], device=device))
            change, _ = moments.solve(self.ridges)
            rows, batch = next(self._batches(self.pruned))
            with _readers(getattr(block, branch.core)) as readers:
                self._run(group, rows, batch)
            for module in readers:
                weight = _matrix(module)
                _replace(module, weight + weight @ change.to(weight))

    def refit_writes(self, group: _Group, *, widest: bool) -> dict[str, float]:
        """Solves the output projections of a group, and leaves it.

        Args:
            widest: whether a projection may change in any way; else only by a map of what it gave.

        Returns:
            By dense unit, the share of the error on held-out tokens that is left.
        """
        self._advance_dense(group)
        blocks = [self.pruned.blocks[unit.layer] for unit in group.pruned]
        branches = [self.pruned.architecture.branches[unit.kind] for unit in group.pruned]
        projections: list[nn.Module] = [
            attrgetter(branch.projection)(block) for block, branch in zip(blocks, branches, strict=True)
        ]
        gain = _gain(blocks[0], branches[0], self._dense_streams.shape[-1])
        widths = [_matrix(projection).shape[1] if widest else len(gain) for projection in projections]
        moments = Moments(sum(widths), len(gain))
        for rows, batch in self._batches(self.pruned):
            entering = self._pruned_streams[rows].to(batch.embedded.device)
            with _calls(projections) as calls:
                after = self._run(group, rows, batch)
            written = torch.stack([output for _, output in calls]).sum(dim=0)
            scale = _scale(after - entering, written, gain)
            features = torch.cat(
                [
                    inputs if widest else inputs @ _matrix(projection).T
                    for projection, (inputs, _) in zip(projections, calls, strict=True)
                ],
                dim=-1,
            )
            meant = self._dense_streams[rows].to(after.device)
            lacking = torch.where(gain == 0, 0, (meant - after).double() / gain.double())
            weights = 1 / meant.double().square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
            self._add(moments, rows, batch, features * scale, lacking, weights)
        change, left = moments.solve(self.ridges)
        parts = torch.split(change, widths, dim=1)
        for projection, part in zip(projections, parts, strict=True):
            weight = _matrix(projection)
            _replace(projection, weight + (part.to(weight) if widest else part.to(weight) @ weight))
        self._advance_pruned(group)
        energy = moments.energy * gain.double().cpu().square()
        share = float((left * energy).sum() / energy.sum()) if bool(energy.sum() > 0) else 1.0
        return {str(unit): share for unit in group.dense}


def _normed(block: nn.Module, branch: Branch, stream: torch.Tensor) -> torch.Tensor:
    """What a branch reads of the stream."""
    for name in branch.norms_before:
        stream = getattr(block, name)(stream)
    return stream


def _gain(block: nn.Module, branch: Branch, width: int) -> torch.Tensor:
    """(hidden,) what the norms after a branch multiply each channel with; ones where there are none."""
    gain = torch.ones(1, 1, width, device=next(block.parameters()).device, dtype=next(block.parameters()).dtype)
    for name in branch.norms_after:
        gain = getattr(block, name)(gain)
    return gain[0, 0]


def _scale(added: torch.Tensor, written: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """(sequences, length, 1) the factor between what projections wrote, times the gain, and what the stream got.

    One in most families; a constant where the family scales its branches, and one over the length where a norm comes
    after. For small changes of the projection it stays the same.
    """
    expected = written.float() * gain.float()
    energy = expected.square().sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (added.float() * expected).sum(dim=-1, keepdim=True) / energy


def _matrix(module: nn.Module) -> torch.Tensor:
    """(outputs, inputs) of a linear map."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def _replace(module: nn.Module, matrix: torch.Tensor) -> None:
    """Gives a linear map a new matrix, (outputs, inputs); the old tensor, which other models may share, stays."""
    matrix = matrix.T if isinstance(module, Conv1D) else matrix
    module.weight = nn.Parameter(matrix.contiguous(), requires_grad=False)


@contextmanager
def _calls(modules: Sequence[nn.Module]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects input and output of each module, in the order of the list."""
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.update({module: (args[0], output)}))
        for module in modules
    ]
    collected: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
        collected.extend(seen[module] for module in modules if module in seen)


@contextmanager
def _readers(core: nn.Module) -> Iterator[list[nn.Module]]:
    """Collects the linear maps of a branch that are given what the branch itself is given."""
    given: list[torch.Tensor] = []
    found: list[nn.Module] = []

    def enter(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        given.append(args[0] if args else kwargs["hidden_states"])

    def call(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].data_ptr() == given[0].data_ptr() and args[0].shape[-1] == given[0].shape[-1]:
            found.append(module)

    handles = [core.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [m.register_forward_pre_hook(call) for m in core.modules() if isinstance(m, nn.Linear | Conv1D)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


RECOVERIES.register("refit", Refit, summary="projections solved anew, in closed form (the default)", source="ours")
RECOVERIES.register(
    "linear",
    LinearMap,
    summary="a linear map before each removed window, folded in",
    source="ReplaceMe, arXiv 2505.02819",
)
