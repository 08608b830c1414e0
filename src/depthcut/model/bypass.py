"""Makes units contribute nothing: reversibly (`bypass`), or for good (`remove_branch`, which surgery uses).

Both do the same thing, so a model with units bypassed and the one with them removed agree bit for bit: the core of
the branch is replaced by a module that adds zeros and its norms by identities. The norms go too, because a norm with
a bias after the core would still add something to the stream; those that another branch reads stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer

from depthcut.model.block_call import restore, skip
from depthcut.model.branches import Architecture, Branch
from depthcut.types import Unit, UnitKind


class Emulation(nn.Module):
    """What is added in place of a removed sublayer: a constant and, of rank r, a linear map of the stream.

    Attributes:
        bias: (hidden,).
        down: (rank, hidden).
        up: (hidden, rank).
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.down = nn.Parameter(torch.zeros(rank, hidden_size))
        self.up = nn.Parameter(torch.zeros(hidden_size, rank))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(hidden_states, self.down), self.up, self.bias)


class RemovedFFN(nn.Module):
    """Stands where a feed-forward part was: adds nothing and holds nothing, or an emulation of it.

    Attributes:
        num_outputs: values to return, the stream first.
        adds_residual: whether the stream, the second argument, is to be added.
    """

    def __init__(
        self, emulation: Emulation | None = None, *, num_outputs: int = 1, adds_residual: bool = False
    ) -> None:
        super().__init__()
        self.emulation = emulation
        self.num_outputs = num_outputs
        self.adds_residual = adds_residual

    def forward(self, hidden_states: torch.Tensor, *args: Any, **_: Any) -> Any:
        added = torch.zeros_like(hidden_states) if self.emulation is None else self.emulation(hidden_states)
        if self.adds_residual:
            added = args[0] + added
        return added if self.num_outputs == 1 else (added, *(None for _ in range(1, self.num_outputs)))


class RemovedMixer(RemovedFFN):
    """Stands where an attention or another mixer was, and caches nothing.

    The block keeps its slot in the cache, marked as a dummy: the cache otherwise reads its length and its masks
    from a slot that is never filled, for example when attention 0 is gone.

    Attributes:
        layer_idx: the block's slot in the cache.
    """

    def __init__(self, layer_idx: int, emulation: Emulation | None = None, **outputs: Any) -> None:
        super().__init__(emulation, **outputs)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Families call the cache by different names.
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Cache):
                self._mark_slot(argument)
        return super().forward(hidden_states, *args, **kwargs)

    def _mark_slot(self, cache: Cache) -> None:
        layers = cache.layers
        if cache.layer_class_to_replicate is not None:
            layers.extend(cache.layer_class_to_replicate() for _ in range(self.layer_idx + 1 - len(layers)))
        if not isinstance(layers[self.layer_idx], DummyLayer):
            layers[self.layer_idx] = DummyLayer()


def remove_branch(
    block: nn.Module, branch: Branch, kind: UnitKind, layer_idx: int, emulation: Emulation | None = None
) -> dict[str, Any]:
    """Takes one branch out of a block; returns what was there, by attribute name.

    Args:
        branch: the row's; which of its forms the block has is found here.
        emulation: what is added to the stream instead, nothing where left out.
    """
    branch = branch.of(block)
    taken = {name: getattr(block, name) for name in (*branch.modules, *branch.settings)}
    for name in branch.modules:
        setattr(block, name, nn.Identity())
    for name in branch.beside:
        setattr(block, name, RemovedFFN())
    for name, value in branch.settings.items():
        setattr(block, name, value)
    outputs: dict[str, Any] = {"num_outputs": branch.num_outputs, "adds_residual": branch.adds_residual}
    removed = RemovedFFN(emulation, **outputs) if kind == "ffn" else RemovedMixer(layer_idx, emulation, **outputs)
    setattr(block, branch.core, removed)
    return taken


@contextmanager
def bypass(model: PreTrainedModel, architecture: Architecture, units: Iterable[Unit]) -> Iterator[None]:
    """While open, the given units add exactly zero to the residual stream.

    The model is as before on exit, also after an exception. Already removed or bypassed units may be given again.

    Args:
        model: changed in place while open; its tensors are not touched.
        architecture: the row that describes it.
        units: what is to add nothing, in any order.

    Raises:
        IndexError: a unit is not of this model.
    """
    blocks = architecture.block_list(model)
    taken: list[tuple[nn.Module, dict[str, Any]]] = []
    skipped: list[tuple[nn.Module, Any]] = []
    try:
        for unit in units:
            block = blocks[unit.layer]
            if unit.kind == "block":
                skipped.append((block, block.__dict__.get("forward")))
                skip(architecture, block)
                continue
            taken.append((block, remove_branch(block, architecture.branches[unit.kind], unit.kind, unit.layer)))
        yield
    finally:
        for block, forward in reversed(skipped):
            restore(block, forward)
        for block, attributes in reversed(taken):
            for name, value in attributes.items():
                setattr(block, name, value)
