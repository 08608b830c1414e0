"""What an attention or a feed-forward part costs in time when one token is decoded: measured on this machine.

All units of a kind but the first are bypassed at once, and the model is timed with and without them in turn: what they
share with the rest (launch, memory traffic, Python) is then counted as it is. One stays because a cache without any
attention has no length. Units of a kind count the same, which is true where blocks are equal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection

import torch
from transformers import DynamicCache, PreTrainedModel

from depthcut.model.bypass import bypass
from depthcut.model.stream import DecoderStream
from depthcut.types import Latency, Unit

CONTEXT_TOKENS = 128
DECODED_TOKENS = 8
ROUNDS = 7


@torch.no_grad()
def measure_latency(stream: DecoderStream, input_ids: torch.Tensor) -> Latency:
    """Seconds to decode one token after a short context, whole and for each kind of unit.

    The median over rounds; each round times the model whole and without each kind. Costs about
    `ROUNDS` x (kinds + 1) short prompts and as many times `DECODED_TOKENS` tokens.

    Args:
        input_ids: (1, length) of which the first `CONTEXT_TOKENS` are the context.
    """
    kinds = list(stream.architecture.branches)
    seconds: dict[str, list[float]] = {name: [] for name in ["", *kinds]}
    for index in range(ROUNDS + 1):
        for name, taken in seconds.items():
            units = [unit for unit in stream.units if unit.kind == name][1:]
            measured = _decode(stream, units, input_ids[:, :CONTEXT_TOKENS])
            if index:
                taken.append(measured)
    whole = statistics.median(seconds[""])
    per_unit: dict[str, float] = {
        kind: max(0.0, whole - statistics.median(seconds[kind])) / (len(stream.blocks) - 1) for kind in kinds
    }
    return Latency(token_seconds=whole, unit_seconds=per_unit)


def _decode(stream: DecoderStream, without: Collection[Unit], context: torch.Tensor) -> float:
    """Seconds a token, without the given units."""
    model = stream.model
    cache = DynamicCache(config=model.config)
    with bypass(model, stream.architecture, without):
        model(input_ids=context.to(model.device), past_key_values=cache, use_cache=True)
        token = context[:, -1:].to(model.device)
        began = _now(model)
        for _ in range(DECODED_TOKENS):
            model(input_ids=token, past_key_values=cache, use_cache=True)
        return (_now(model) - began) / DECODED_TOKENS


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
