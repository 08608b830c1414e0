"""What weights and cache take while a model decodes, by the length of the context: dense, and without some units."""

from __future__ import annotations

from collections.abc import Collection

from depthcut.methods.budget import Memory
from depthcut.model.heads import head_of
from depthcut.model.load import ModelSource
from depthcut.model.units import ModelSizes
from depthcut.model.wrappers import decoder_config
from depthcut.results import DECODING_BYTES, Measurement
from depthcut.run.session import memory_of
from depthcut.types import Unit

CONTEXTS = (1024, 8192, 32_768, 131_072)
"""Tokens of one sequence at which it is told what decoding takes."""


def memories(source: ModelSource, sizes: ModelSizes) -> dict[int, Memory]:
    """What decoding one sequence takes, by its tokens: as many as the model was made for, and fewer."""
    longest = getattr(decoder_config(source.config), "max_position_embeddings", None) or CONTEXTS[-1]
    return {context: memory_of(source, sizes, context) for context in sorted({min(c, longest) for c in CONTEXTS})}


def decoding_bytes(source: ModelSource, sizes: ModelSizes, removed: Collection[Unit]) -> list[Measurement]:
    """The same of the dense model and of the one without some units, as measurements; none where nothing is decoded."""
    if head_of(source.config) != "tokens":
        return []
    return [
        Measurement(
            name=DECODING_BYTES,
            value=memory.without(without),
            unit="bytes",
            model=model,
            data=f"{context} tokens of context",
        )
        for context, memory in memories(source, sizes).items()
        for model, without in (("dense", ()), ("pruned", removed))
    ]
