"""What a model keeps of a sequence while it decodes: keys and values, up to each window, and states of fixed size."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig

from depthcut.model.branches import Architecture
from depthcut.model.latency import cache_argument
from depthcut.model.units import ModelSizes, empty_model
from depthcut.model.wrappers import decoder_config
from depthcut.types import Unit

WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of attention that keep a number of tokens at most, and the entry of the configuration that says it."""


def cache_bytes(
    config: PreTrainedConfig, architecture: Architecture, sizes: ModelSizes, context: int
) -> dict[Unit, float]:
    """Bytes of KV cache of every unit, for one sequence of a given length.

    Args:
        sizes: whose keys and values are of the precision that counts; states count in it too, or in float32 where the
            model keeps them so.
    """
    kept = {
        unit: size.kv_bytes_per_token * float(min(context, _window(config, unit.layer, context)))
        for unit, size in sizes.units.items()
    }
    if "mixer" in architecture.branches:
        for unit, num_bytes in _state_bytes(config).items():
            kept[unit] += num_bytes
    return kept


def _window(config: PreTrainedConfig, layer: int, context: int) -> int:
    """The most tokens that the attention of a block keeps."""
    decoder = decoder_config(config)
    kinds = getattr(decoder, "layer_types", None)
    if kinds is not None:
        named = WINDOWED.get(kinds[layer])
        return int(getattr(decoder, named, None) or context) if named else context
    slides = getattr(decoder, "use_sliding_window", True)
    return int(getattr(decoder, "sliding_window", None) or context) if slides else context


@torch.no_grad()
def _state_bytes(config: PreTrainedConfig) -> dict[Unit, float]:
    """By mixer, what its states take; asked of a model without weights, which computes shapes alone."""
    model = empty_model(config, torch.bfloat16).eval()
    cache: Any = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(1, 4, dtype=torch.int64, device="meta"), **{cache_argument(model): cache})
    found = {}
    for layer, of_layer in enumerate(cache.layers):
        held = [value for value in vars(of_layer).values() if isinstance(value, dict)]
        tensors = [tensor for each in held for tensor in each.values() if isinstance(tensor, torch.Tensor)]
        if tensors:
            found[Unit(layer, "mixer")] = float(sum(tensor.nbytes for tensor in tensors))
    return found
