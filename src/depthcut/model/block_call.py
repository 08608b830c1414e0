"""Calls single blocks as their model does: stream in, stream out, with whatever else the family passes beside it.

To everything else a stream is (sequences, length, width). Some families carry several streams side by side, in a tensor
of four dimensions; some hand on more than the stream from block to block; and in some, later blocks read keys and
values of earlier ones. What a pass hands on beside the stream is kept with the pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import KVSharingDict

from depthcut.model.branches import Architecture
from depthcut.model.placement import bring
from depthcut.model.watch import first, watch
from depthcut.types import Unit

Visitor = Callable[[Unit | int, torch.Tensor, torch.Tensor], None]
"""Called as visit(unit, before, after) with the stream before and after each unit, and after the units of a block with
the block's index and the stream before and after the whole block."""


@dataclass
class Beside:
    """The values beside the hidden states that the blocks of one pass give to the next block.

    Attributes:
        carried: by name of the parameter that takes it.
        shared: keys and values that later blocks read.
    """

    carried: dict[str, Any] = field(default_factory=dict)
    shared: KVSharingDict = field(default_factory=KVSharingDict)


def bind(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The stream that a block is given, and by name what else."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    return given.pop(names[0]), given


def returned(architecture: Architecture, stream: torch.Tensor, given: dict[str, Any]) -> Any:
    """The output of a block that returns its input unchanged, together with the carried values that it was given."""
    if architecture.block_outputs == 1:
        return stream
    carried = [given.get(name) for name in architecture.carried]
    return (stream, *carried, *[None] * (architecture.block_outputs - 1 - len(carried)))


@contextmanager
def blocks_replaced(
    architecture: Architecture, blocks: nn.ModuleList, run: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]
) -> Iterator[None]:
    """While open, every block returns `run(stream, other arguments)` in place of its own output."""

    before = [block.__dict__.get("forward") for block in blocks]

    def replace(block: nn.Module) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, given = bind(block, args, kwargs)
            return returned(architecture, run(stream, given), given)

        block.forward = forward

    try:
        for block in blocks:
            replace(block)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            restore(block, own)


def restore(block: nn.Module, forward: Any) -> None:
    """Gives a block back its `forward`.

    Args:
        forward: what stood in the block itself, where accelerate puts hooks; None where the class's was in use.
    """
    del block.forward
    if forward is not None:
        block.forward = forward


def skip(architecture: Architecture, block: nn.Module) -> None:
    """Makes a block return its stream unchanged, until its `forward` is restored. The module of `entry_of` still
    runs.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream, given = bind(block, args, kwargs)
        if entry := entry_of(architecture, block):
            stream = entry(stream)
        return returned(architecture, stream, given)

    block.forward = forward


def entry_of(architecture: Architecture, block: nn.Module) -> nn.Module | None:
    """The module inside the first block that still belongs to the embedding; None where the family has none."""
    return getattr(block, architecture.entry, None) if architecture.entry else None


class BlockCaller:
    """Runs single blocks of one model on streams of (sequences, length, width).

    Args:
        blocks: of the model.
    """

    def __init__(self, architecture: Architecture, blocks: nn.ModuleList) -> None:
        self.architecture = architecture
        self.blocks = blocks
        self._inner: torch.Size = torch.Size()

    def outer(self, native: torch.Tensor) -> torch.Tensor:
        """A model's own stream as (sequences, length, width): parallel streams are joined along the width."""
        if native.dim() == 3:
            return native
        side_by_side = native.movedim(0, 2) if self.architecture.streams_first else native
        self._inner = side_by_side.shape[2:]
        return side_by_side.flatten(2)

    def inner(self, stream: torch.Tensor) -> torch.Tensor:
        """The inverse of `outer`: a stream in the shape that the model's blocks take."""
        if not self._inner:
            return stream
        side_by_side = stream.view(*stream.shape[:2], *self._inner)
        return side_by_side.movedim(2, 0) if self.architecture.streams_first else side_by_side

    def embed(self, native: torch.Tensor) -> torch.Tensor:
        """(sequences, length, width) the stream entering the blocks, from the first argument of the first block."""
        entry = entry_of(self.architecture, self.blocks[0])
        return self.outer(native if entry is None else entry(native))

    def __call__(self, layer: int, stream: torch.Tensor, given: dict[str, Any], beside: Beside) -> torch.Tensor:
        """One block.

        Args:
            given: by name, what the model gives the block beside the stream.
            beside: of this pass; what the block hands on is put there.
        """
        block = self.blocks[layer]
        given = {name: beside.shared if isinstance(value, KVSharingDict) else value for name, value in given.items()}
        entry = self.architecture.entry if layer == 0 and entry_of(self.architecture, block) else ""
        if entry:
            # The stream has been through it.
            module = getattr(block, entry)
            setattr(block, entry, nn.Identity())
        try:
            output = block(self.inner(stream), **given | beside.carried)
        finally:
            if entry:
                setattr(block, entry, module)
        if self.architecture.carried:
            beside.carried = dict(zip(self.architecture.carried, output[1:], strict=False))
        return self.outer(first(output))

    def around(
        self,
        layer: int,
        hidden: torch.Tensor,
        given: dict[str, Any],
        beside: Beside,
        units: Sequence[Unit],
        visit: Visitor | None,
    ) -> torch.Tensor:
        """Runs one block and calls `visit` with the stream before and after each of its units.

        Args:
            hidden: (sequences, length, hidden) entering the first of `units`.
            given: by name, what the model gives the block beside the stream.
            beside: of this pass.
            units: of this block, in order of execution, up to its last.
        """
        if visit is None:
            return self(layer, hidden, given, beside)
        hidden = bring(hidden, self.blocks[layer])
        if self.architecture.parallel:
            lasts = [self._modules(unit)[-1] for unit in units]
            added: dict[nn.Module, torch.Tensor] = {}
            # Copies: Falcon adds the attention's output to the feed-forward part's in place.
            with watch(lasts, lambda call: added.update({call.module: call.returned.clone()})):
                output = self(layer, hidden, given, beside)
            for unit, module in zip(units, lasts, strict=True):
                visit(unit, hidden, hidden + added[module])
            visit(layer, hidden, output)
            return output
        between: list[torch.Tensor] = []
        firsts = [self._modules(unit)[0] for unit in units[1:]]
        with watch(firsts, lambda call: between.append(call.given), before=True):
            output = self(layer, hidden, given, beside)
        # OPT joins sequences before its feed-forward part.
        streams = [hidden, *(stream.view_as(hidden) for stream in between), output]
        for unit, before, after in zip(units, streams, streams[1:], strict=False):
            visit(unit, before, after)
        visit(layer, hidden, output)
        return output

    def _modules(self, unit: Unit) -> list[nn.Module]:
        block = self.blocks[unit.layer]
        return [getattr(block, name) for name in self.architecture.branches[unit.kind].of(block).modules]
