"""Removes units for real: blocks leave the model, sublayers leave their block, and the configuration follows.

The kept sublayers are paired again, each attention with the feed-forward part after it, so that a removal of any
adjacent pairs (A·F or F·A) leaves an ordinary dense checkpoint with fewer blocks; any other is marked as one that
lacks sublayers. Configuration that says something block by block goes with the sublayer that reads it: attention
entries come from the attention's block, feed-forward entries from the other's.

The pruned model is a new one that shares the kept tensors with the dense model: both can be used side by side, and
whoever changes weights of one must replace tensors, not write into them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture, Branch
from depthcut.model.bypass import Emulation, remove_branch
from depthcut.model.layer_config import check_layer_config, cut_config
from depthcut.model.packing import check_units, is_dense, pack
from depthcut.model.placement import copy_modules, join
from depthcut.model.quantisation import tensors
from depthcut.model.quantised_names import check_names, renumber_names
from depthcut.model.sublayers import is_marked, mark
from depthcut.model.wrappers import decoder_config, is_wrapper, num_blocks
from depthcut.types import InputError, Unit


def check_removal(config: PreTrainedConfig, architecture: Architecture, removed: Collection[Unit]) -> None:
    """Checks without weights that the units exist and can go.

    Raises:
        InputError: a unit is not of this model, nothing would remain, or the configuration names blocks in a way that
            cannot be carried over.
    """
    if removed and is_marked(config):
        raise InputError(
            "this model's blocks already lack sublayers; begin from the dense model and remove more of it at once"
        )
    check_units(architecture, num_blocks(config), removed)
    for layer, reason in architecture.staying.items():
        if any(unit.layer == layer for unit in removed):
            raise InputError(f"block {layer} cannot leave this model: {reason}; leave it out")
    for name, value in architecture.settings.items():
        if removed and getattr(decoder_config(config), name) != value:
            raise InputError(
                f"no block can leave a {config.model_type} model whose {name} is not {value!r}, since its blocks then "
                "depend on their index; set it in the configuration before the model first runs"
            )
    units = architecture.units(num_blocks(config))
    packed = pack(units, removed, architecture)
    if is_wrapper(config) and not is_dense(packed, architecture):
        raise InputError(
            f"a {config.model_type} model carries its decoder inside, and loads only where its blocks are whole; "
            "remove whole blocks: --unit block or pair"
        )
    if removed:
        check_layer_config(decoder_config(config), packed)
        check_names(config, packed, architecture)
    if "mixer" in architecture.branches:
        _require_every_mixer(
            decoder_config(config), {unit.layer for unit in units if unit.kind == "mixer" and unit not in removed}
        )


def can_be_removed(config: PreTrainedConfig, architecture: Architecture, removed: Collection[Unit]) -> bool:
    """Whether a set passes `check_removal`, where that depends on the set: in hybrids, which keep a mixer of each kind,
    and of which Jamba says by periods what its blocks are. Elsewhere True, and nothing is looked at.
    """
    if "mixer" in architecture.branches:
        try:
            check_removal(config, architecture, removed)
        except InputError:
            return False
    return True


def _require_every_mixer(config: PreTrainedConfig, kept: Collection[int]) -> None:
    """Raises InputError where a hybrid would lose the last of its attentions or of its other mixers."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    for kind in sorted(set(kinds) - {"mlp", "moe"}):
        if not any(kinds[layer] == kind for layer in kept):
            raise InputError(
                f"no mixer of the kind {kind} would remain, and the cache of a model that mixes kinds needs one of "
                "each; remove fewer"
            )


def apply(
    model: PreTrainedModel,
    architecture: Architecture,
    removed: Collection[Unit],
    emulations: Mapping[Unit, Emulation] | None = None,
) -> PreTrainedModel:
    """The model without the given units.

    Args:
        model: left as it is; the result shares its tensors.
        emulations: what removed units are replaced with. Each keeps its unit's place, so blocks are not packed over it.

    Returns:
        A new model. Block indices, the block count and per-layer configuration are those of the pruned model; with
        nothing removed it is the dense model, bit for bit.

    Raises:
        InputError: see `check_removal`.
    """
    check_removal(model.config, architecture, removed)
    units = architecture.units(num_blocks(model.config))
    emulations = emulations or {}
    packed = pack(units, set(removed) - set(emulations), architecture)
    pruned = twin(model)
    blocks = architecture.block_list(pruned)
    attributes = {
        (layer, kind): _attributes(block, branch.of(block))
        for layer, block in enumerate(blocks)
        for kind, branch in architecture.branches.items()
    }
    kept: list[nn.Module] = []
    missing: list[Unit] = []
    ranks: dict[str, int] = {}
    for index, packed_block in enumerate(packed):
        block = blocks[packed_block.source(next(iter(architecture.branches)))]
        for kind, branch in architecture.branches.items():
            source = packed_block.sources.get(kind)
            emulation = None if source is None else emulations.get(Unit(source, kind))
            if source is None or emulation is not None:
                remove_branch(block, branch, kind, index, emulation)
                missing.append(Unit(index, kind))
                if emulation is not None:
                    ranks[str(missing[-1])] = len(emulation.down)
                continue
            for name, value in attributes[source, kind].items():
                setattr(block, name, value)
                join(value, block)
        _renumber(block, index, architecture.slots)
        kept.append(block)
    if architecture.entry:
        setattr(kept[0], architecture.entry, getattr(blocks[0], architecture.entry))
    del blocks[:]
    blocks.extend(kept)
    if missing:
        mark(pruned, missing, ranks)
    if removed:
        cut_config(decoder_config(pruned.config), packed, len(units) // len(architecture.branches))
        renumber_names(pruned.config, packed, architecture)
        _cut_tables(pruned, architecture, [block.source("attn") for block in packed], num_blocks(model.config))
    return pruned


def _cut_tables(model: PreTrainedModel, architecture: Architecture, kept: Sequence[int], num_blocks: int) -> None:
    """Cuts the shares of blocks that are gone out of what stands beside the blocks, in place; tensors are new."""
    holder = model.get_submodule(architecture.blocks.rpartition(".")[0])
    for path, axis in architecture.tables.items():
        name, _, attribute = path.rpartition(".")
        owner = holder.get_submodule(name)
        table = getattr(owner, attribute)
        shares = table.detach().unflatten(axis, (num_blocks, -1))
        cut = shares.index_select(axis, torch.tensor(kept, device=table.device)).flatten(axis, axis + 1)
        setattr(owner, attribute, nn.Parameter(cut, requires_grad=table.requires_grad))
        for width in ("embedding_dim", "out_features", "num_embeddings"):
            if getattr(owner, width, None) == table.shape[axis]:
                setattr(owner, width, cut.shape[axis])
    if hasattr(holder, "first_kv_shared_layer_idx"):
        config: Any = holder.config
        holder.first_kv_shared_layer_idx = len(kept) - config.num_kv_shared_layers


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules that shares every tensor with the model; whoever changes one replaces it."""
    return copy_modules(model, {id(tensor): tensor for tensor in tensors(model)})


def _attributes(block: nn.Module, branch: Branch) -> dict[str, Any]:
    """What of a block goes with one of its branches, by name."""
    return {name: getattr(block, name) for name in (*branch.modules, *branch.settings)}


def _renumber(block: nn.Module, index: int, slots: int) -> None:
    """Gives every module of a block its new index, or the new one of its slots of the KV cache."""
    for module in block.modules():
        for name in {"layer_idx", "layer_id"} & module.__dict__.keys():
            own = index if module is block or slots == 1 else index * slots + getattr(module, name) % slots
            setattr(module, name, own)
