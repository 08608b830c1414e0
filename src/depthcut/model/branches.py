"""What a block of a decoder consists of: its residual branches, or the block as a whole; and where the blocks are.

Everything else in depthcut works on this description. It is only data; `proof.py` compares it with a loaded model
before anything relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from depthcut.types import Unit, UnitKind

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block, as attribute names of the block.

    Attributes:
        core: the attention, mixer or feed-forward module itself; empty where the branch is the whole block.
        projection: dotted path, from the block, of the linear map that writes to the residual stream; empty, or
            missing in a block, where no single one does (a mixture of experts).
        norms_before: norms between the stream and the core, in order.
        norms_after: norms between the core and the addition to the stream, in order.
        shared_norms: norms before the core that stay when the branch goes: the other branch reads them too.
        leading: pieces of the core that stand in the block by themselves and run before it.
        beside: modules that read what the core reads and are added to what it gives.
        num_outputs: values that the core returns, the stream first.
        adds_residual: whether the core is given the stream as its second argument and returns the sum.
        settings: plain attributes of the block that belong to the branch, and their values where it is gone.
        alternative: the branch in blocks of another kind.
    """

    core: str
    projection: str = ""
    norms_before: tuple[str, ...] = ()
    norms_after: tuple[str, ...] = ()
    shared_norms: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    num_outputs: int = 1
    adds_residual: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    alternative: Branch | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that belong to the branch alone, in order of execution."""
        own = (self.core,) if self.core else ()
        return (*self.norms_before, *self.leading, *own, *self.beside, *self.norms_after)

    def of(self, block: nn.Module) -> Branch:
        """The branch as a block has it: of its kind, and without modules that it lacks."""
        if not self.core:
            return replace(self, leading=tuple(name for name, _ in block.named_children()))

        def has(path: str) -> bool:
            found: Any = block
            for name in path.split("."):
                found = getattr(found, name, None)
            return found is not None

        chain = [self]
        while chain[-1].alternative is not None:
            chain.append(chain[-1].alternative)
        present = [branch for branch in chain if has(branch.core)] or [self]
        found = next((branch for branch in present if branch.projection and has(branch.projection)), present[0])
        beside = tuple(filter(has, found.beside))
        return replace(
            found,
            projection=found.projection if has(found.projection) and not beside else "",
            norms_before=tuple(filter(has, found.norms_before)),
            norms_after=tuple(filter(has, found.norms_after)),
            beside=beside,
            alternative=None,
        )


@dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        branches: the residual branches of a block in order of execution, by kind of unit. What mixes tokens is `attn`
            where it is attention in every block, else `mixer`.
        blocks: dotted path of the list of blocks, from the whole model.
        parallel: whether both branches read the same stream; then sublayers of neighbouring blocks cannot be
            paired anew.
        block_outputs: values that a block returns, the stream first.
        carried: of whole blocks, the parameters that take what the block before returned after the stream.
        entry: a module of the first block alone that belongs before it; it goes to the block that comes first then.
        streams_first: whether streams side by side are (streams, sequences, length, width), not (sequences, length,
            streams, width).
        tables: of what stands beside the blocks, the parameters that have a share for every block, and on which axis.
        last_entry: the last block that a pass can be entered at, where later ones read more of earlier blocks than
            the stream; None where there is no such thing.
        staying: blocks that have to stay, and why.
        slots: of the cache, that a block has.
        settings: entries that the configuration has to have, so that blocks do not depend on their index.
    """

    branches: dict[UnitKind, Branch]
    blocks: str = "model.layers"
    parallel: bool = False
    block_outputs: int = 1
    carried: tuple[str, ...] = ()
    entry: str = ""
    streams_first: bool = False
    tables: dict[str, int] = field(default_factory=dict)
    last_entry: int | None = None
    staying: dict[int, str] = field(default_factory=dict)
    slots: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """Whether sublayers of neighbouring blocks can be joined into whole blocks."""
        return len(self.branches) > 1 and not self.parallel

    @property
    def whole(self) -> bool:
        """Whether only whole blocks can be removed."""
        return "block" in self.branches

    def settle(self, decoder: PreTrainedConfig) -> None:
        """Has a decoder's configuration say what `settings` asks for, in place; the weights stand for either."""
        for name, value in self.settings.items():
            setattr(decoder, name, value)

    def entry_position(self, position: int) -> int:
        """The last position up to the given one that a pass can be entered at; see `DecoderStream.entry`."""
        per_block = len(self.branches)
        if self.parallel:
            position -= position % per_block
        return position if self.last_entry is None else min(position, self.last_entry * per_block)

    def block_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """The model's list of blocks."""
        return attrgetter(self.blocks)(model)  # type: ignore[no-any-return]

    def units(self, num_blocks: int) -> tuple[Unit, ...]:
        """Every unit of a model with that many blocks, in order of execution."""
        return tuple(Unit(layer, kind) for layer in range(num_blocks) for kind in self.branches)


def alike(names: str, row: Architecture) -> dict[str, Architecture]:
    """The same row for several families, whose names are separated by spaces."""
    return dict.fromkeys(names.split(), row)


WHOLE = Branch("")
"""The branch of families of which only whole blocks can be removed."""
