"""Prompt and decode speed of models, interleaved in one run so that all see the same machine; and KV bytes.

What is timed is told apart by phase: reading a long prompt (`prompt`), decoding after it (`decode`), and decoding
after a few tokens (`short_decode`), since the longer the context the more an attention costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from depthcut.model.device import synchronize
from depthcut.model.heads import head_of_model
from depthcut.model.latency import cache_argument
from depthcut.results import Measurement

SHORT_CONTEXT = 16
DECODE_TOKENS = 32
ROUNDS = 5
LEAST_ROUNDS = 3
SETTLED_SPREAD = 0.05
"""If the range of the rounds' ratios is at most this share of their median, half of the rounds are enough."""


@dataclass(frozen=True)
class Seconds:
    """Seconds for reading a prompt and for decoding after it, without loading and tokenising."""

    prompt: float
    decode: float


Timer = Callable[[int, int], Seconds]
"""Takes the length of a prompt and a number of tokens to decode after it, and times both."""


def phases(prompt_tokens: int, decode_tokens: int = DECODE_TOKENS) -> dict[str, int]:
    """Length of the prompt by phase; where nothing is decoded, reading is all."""
    if not decode_tokens:
        return {"prompt": prompt_tokens}
    return {"prompt": prompt_tokens, "decode": prompt_tokens, "short_decode": min(SHORT_CONTEXT, prompt_tokens)}


def time_in_turn(
    timers: Mapping[str, Timer],
    prompt_tokens: int,
    *,
    decode_tokens: int = DECODE_TOKENS,
    rounds: int = ROUNDS,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Tokens per second of every model by phase, and its speed against the first one.

    Each round goes through the phases and times one model after the other; the order turns with every round. A speed is
    the median over rounds; a speed-up is the median of the rounds' ratios, since what disturbs a round disturbs its
    neighbours. One warm-up round is thrown away. After half of the rounds, though no fewer than `LEAST_ROUNDS`, it ends
    as soon as the ratios of every phase have settled; `samples` says how many there were.

    Args:
        timers: by model, the reference first.
        prompt_tokens: of the long prompt.
        decode_tokens: after each prompt; 0 where models only read.
        rounds: at most.
    """
    lengths = phases(prompt_tokens, decode_tokens)
    seconds: dict[tuple[str, str], list[float]] = {(phase, name): [] for phase in lengths for name in timers}
    reference, *others = timers
    for index in range(rounds + 1):
        order = list(timers) if index % 2 == 0 else list(timers)[::-1]
        for length in dict.fromkeys(lengths.values()):
            for name in order:
                taken = timers[name](length, decode_tokens)
                for phase in [phase for phase in lengths if lengths[phase] == length and index]:
                    seconds[phase, name].append(taken.prompt if phase == "prompt" else taken.decode)
        advance(1)
        ratios = [_ratios(seconds[phase, reference], seconds[phase, name]) for phase in lengths for name in others]
        if index >= max(LEAST_ROUNDS, -(-rounds // 2)) and ratios and all(map(_has_settled, ratios)):
            advance(rounds - index)
            break

    measurements = []
    for phase, length in lengths.items():
        setting = f"batch 1, prompt of {length}" + (f", {decode_tokens} decoded" if decode_tokens else "")
        count = length if phase == "prompt" else decode_tokens
        for name in timers:
            speed = count / statistics.median(seconds[phase, name])
            measurements.append(_measured(f"{phase}_tokens_per_second", speed, "tokens/s", name, setting, index))
        for name in others:
            speedup = statistics.median(_ratios(seconds[phase, reference], seconds[phase, name]))
            measurements.append(_measured(f"{phase}_speedup", speedup, "ratio", name, setting, index))
    return measurements


def _ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [slow / fast for slow, fast in zip(before, after, strict=True)]


def _has_settled(ratios: Sequence[float]) -> bool:
    return max(ratios) - min(ratios) <= SETTLED_SPREAD * statistics.median(ratios)


def _measured(name: str, value: float, unit: str, model: str, setting: str, rounds: int) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, model=model, data=setting, samples=rounds)


def compare_speed(
    models: Mapping[str, PreTrainedModel],
    input_ids: torch.Tensor,
    *,
    decode_tokens: int = DECODE_TOKENS,
    rounds: int = ROUNDS,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """`time_in_turn` for models in memory. The prompt is cut so that what is decoded stays within their context.

    Args:
        models: by name, the reference first.
        input_ids: (1, length), the long prompt; the short one is its beginning.
    """
    timers: dict[str, Timer] = {name: partial(time_once, model, input_ids) for name, model in models.items()}
    length = prompt_length(next(iter(models.values())), input_ids, decode_tokens)
    measurements = time_in_turn(timers, length, decode_tokens=decode_tokens, rounds=rounds, advance=advance)
    threads = f", {torch.get_num_threads()} threads"
    return [measurement.model_copy(update={"data": measurement.data + threads}) for measurement in measurements]


def prompt_length(model: PreTrainedModel, input_ids: torch.Tensor, decode_tokens: int = DECODE_TOKENS) -> int:
    """How much of a prompt a model can read and still decode after it."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = input_ids.shape[1]
    return length if context is None else min(length, context - decode_tokens)


@torch.no_grad()
def time_once(model: PreTrainedModel, input_ids: torch.Tensor, prompt_tokens: int, decode_tokens: int) -> Seconds:
    """Reads the first tokens of a prompt, then decodes greedily. Only the last token's logits are computed.

    What predicts no tokens decodes none.
    """
    input_ids = input_ids[:, :prompt_tokens].to(model.device)
    if head_of_model(model) != "tokens":
        began = _now(model)
        model(input_ids=input_ids, use_cache=False)
        return Seconds(_now(model) - began, 0.0)
    kept: dict[str, Any] = {cache_argument(model): DynamicCache(config=model.config), "use_cache": True}
    began = _now(model)
    output = model(input_ids=input_ids, logits_to_keep=1, **kept)
    token = output.logits[:, -1:].argmax(dim=-1)
    prompt_end = _now(model)
    for _ in range(decode_tokens):
        output = model(input_ids=token, **kept)
        token = output.logits[:, -1:].argmax(dim=-1)
    return Seconds(prompt_end - began, _now(model) - prompt_end)


def _now(model: PreTrainedModel) -> float:
    synchronize(model.device)
    return time.perf_counter()


@torch.no_grad()
def kv_bytes_per_token(model: PreTrainedModel, input_ids: torch.Tensor) -> float:
    """Bytes that the model's cache really holds, a token of one sequence; measured, so sliding windows count."""
    cache = DynamicCache(config=model.config)
    model(input_ids=input_ids.to(model.device), use_cache=True, **{cache_argument(model): cache})
    # Mixers without keys keep a state of fixed size, which no token adds to.
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    num_bytes: int = sum(tensor.nbytes for tensor in held if tensor is not None)
    return num_bytes / input_ids.numel()
