"""What an attention or a feed-forward part costs in time when one token is decoded: measured on this machine.

All units of a kind but the first are bypassed at once, and the model is timed with and without them in turn: what they
share with the rest (launch, memory traffic, Python) is then counted as it is. One stays because a cache without any
attention has no length; in hybrids one of each sort of mixer. Units of a kind count the same, which is true where
blocks are equal.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Collection
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from depthcut.model.bypass import bypass
from depthcut.model.device import synchronize
from depthcut.model.stream import DecoderStream
from depthcut.model.wrappers import decoder_config
from depthcut.types import Latency, Unit, UnitKind

CONTEXT_TOKENS = 128
DECODED_TOKENS = 8
ROUNDS = 7


@torch.no_grad()
def measure_latency(
    stream: DecoderStream, input_ids: torch.Tensor, context: int = CONTEXT_TOKENS, batch: int = 1
) -> Latency:
    """Seconds to decode one token of every sequence after a context, whole and for each kind of unit.

    The median over rounds; each round times the model whole and without each kind. Costs about
    `ROUNDS` x (kinds + 1) short prompts and as many times `DECODED_TOKENS` tokens.

    Args:
        input_ids: (1, length), repeated where the context is longer.
        context: its tokens.
        batch: sequences that are decoded together, all alike.
    """
    given = input_ids.repeat(batch, -(-context // input_ids.shape[1]))[:, :context]
    kinds = list(stream.architecture.branches)
    without: dict[str, list[Unit]] = {kind: _but_the_first(stream, kind) for kind in kinds}
    seconds: dict[str, list[float]] = {name: [] for name in ["", *kinds]}
    for index in range(ROUNDS + 1):
        for name, taken in seconds.items():
            measured = _decode(stream, without.get(name, []), given)
            if index:
                taken.append(measured)
    whole = statistics.median(seconds[""])
    per_unit: dict[str, float] = {
        kind: max(0.0, whole - statistics.median(seconds[kind])) / len(without[kind]) for kind in kinds
    }
    return Latency(token_seconds=whole, unit_seconds=per_unit)


def _decode(stream: DecoderStream, without: Collection[Unit], context: torch.Tensor) -> float:
    """Seconds a token, without the given units."""
    model = stream.model
    kept: dict[str, Any] = {cache_argument(model): DynamicCache(config=model.config), "use_cache": True}
    with bypass(model, stream.architecture, without):
        model(input_ids=context.to(model.device), **kept)
        token = context[:, -1:].to(model.device)
        began = _now(model)
        for _ in range(DECODED_TOKENS):
            model(input_ids=token, **kept)
        return (_now(model) - began) / DECODED_TOKENS


def _but_the_first(stream: DecoderStream, kind: UnitKind) -> list[Unit]:
    """The units of a kind without the first; of mixers without the first of each sort."""
    sorts: list[str] = (
        getattr(decoder_config(stream.model.config), "layer_types", None) if kind == "mixer" else None
    ) or []
    sorts = sorts or [kind] * len(stream.blocks)
    return [unit for unit in stream.units if unit.kind == kind and sorts.index(sorts[unit.layer]) < unit.layer]


def cache_argument(model: PreTrainedModel) -> str:
    """What the model calls the cache that it is given."""
    named = "cache_params" in inspect.signature(model.forward).parameters
    return "cache_params" if named else "past_key_values"


def _now(model: PreTrainedModel) -> float:
    synchronize(model.device)
    return time.perf_counter()
