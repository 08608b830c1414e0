"""Removes units for real: blocks leave the model, sublayers leave their block, and the configuration follows.

The kept sublayers are paired again, each attention with the feed-forward part after it, so that a removal of any
adjacent pairs (A·F or F·A) leaves an ordinary dense checkpoint with fewer blocks; any other is marked as one that
lacks sublayers. Per-layer configuration goes with
the sublayer that reads it: attention entries come from the attention's block, feed-forward entries from the other's.

The pruned model is a new one that shares the kept tensors with the dense model: both can be used side by side, and
whoever changes weights of one must replace tensors, not write into them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.architectures import Architecture
from depthcut.model.bypass import Emulation, remove_branch
from depthcut.model.packing import PackedBlock, check_units, pack
from depthcut.model.quantisation import tensors
from depthcut.model.sublayers import is_marked, mark
from depthcut.types import InputError, Unit

FFN_LISTS = frozenset(
    {"moe_layers", "mlp_layer_types", "intermediate_size", "activation_sparsity_pattern", "feed_forward_length"}
)
"""Per-layer configuration that the feed-forward part reads; every other list belongs to the attention."""

NOT_PER_LAYER = frozenset(
    {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"}
)
"""Lists of a configuration whose length can equal the number of blocks only by chance."""

INDEX_SCALARS = frozenset(
    {
        "mlp_only_layers",
        "decoder_sparse_step",
        "first_k_dense_replace",
        "interleave_moe_layer_step",
        "num_kv_shared_layers",
        "num_nextn_predict_layers",
        "attn_layer_period",
        "attn_layer_offset",
        "expert_layer_period",
        "expert_layer_offset",
    }
)
"""Configuration that names blocks by index or period without a list: its meaning changes when blocks leave."""


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
    check_units(architecture, config.num_hidden_layers, removed)
    named = sorted(name for name in INDEX_SCALARS if getattr(config, name, None))
    if removed and named:
        raise InputError(
            f"the configuration names blocks by index or period ({', '.join(named)}), which removing blocks would "
            "silently shift; such models are not supported yet"
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
    units = architecture.units(model.config.num_hidden_layers)
    emulations = emulations or {}
    packed = pack(units, set(removed) - set(emulations), architecture)
    pruned = twin(model)
    blocks = architecture.block_list(pruned)
    modules = {
        (layer, kind): {name: getattr(block, name) for name in branch.modules}
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
            for name, module in modules[source, kind].items():
                setattr(block, name, module)
        _renumber(block, index)
        kept.append(block)
    del blocks[:]
    blocks.extend(kept)
    if missing:
        mark(pruned, missing, ranks)
    if removed:
        _cut_config(pruned.config, packed, len(units) // len(architecture.branches))
    return pruned


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules that shares every tensor with the model; whoever changes one replaces it."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors(model)})


def _renumber(block: nn.Module, index: int) -> None:
    """Gives every module of a block its new index: the slot of its KV cache."""
    for module in block.modules():
        if "layer_idx" in module.__dict__:
            module.layer_idx = index  # type: ignore[assignment]


def _cut_config(config: PreTrainedConfig, packed: Sequence[PackedBlock], num_blocks: int) -> None:
    """Makes the block count and every per-layer list of a configuration those of the pruned model."""
    config.num_hidden_layers = len(packed)
    for name, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == num_blocks and name not in NOT_PER_LAYER:
            kind = "ffn" if name in FFN_LISTS else "attn"
            setattr(config, name, _entries(value, packed, kind))
    layer_types = getattr(config, "layer_types", None)
    if layer_types and getattr(config, "use_sliding_window", False) and hasattr(config, "max_window_layers"):
        # Says from which block on attention slides; readers without layer_types still go by it.
        full = [kind == "full_attention" for kind in layer_types]
        config.max_window_layers = full.index(False) if False in full else len(full)


def _entries(values: list[Any], packed: Sequence[PackedBlock], kind: str) -> list[Any]:
    return [values[block.source(kind)] for block in packed]
