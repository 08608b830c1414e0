"""Prompt and decode speed of two models, interleaved in one run so that both see the same machine; and KV bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from transformers import DynamicCache, PreTrainedModel

from depthcut.types import Measurement


@torch.no_grad()
def compare_speed(
    models: Mapping[str, PreTrainedModel],
    input_ids: torch.Tensor,
    *,
    decode_tokens: int = 32,
    rounds: int = 5,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Tokens per second of every model, and its speed against the first one.

    Each round reads the prompt and then decodes greedily, one model after the other; the order turns with every round.
    A speed is the median over rounds; a speed-up is the median of the rounds' ratios, since what disturbs a round
    disturbs its neighbours. One warm-up round is thrown away. The prompt is cut so that what is decoded after it stays
    within the models' context.

    Args:
        models: by name, the reference first.
        input_ids: (1, length), the prompt.
    """
    reference = next(iter(models))
    context = getattr(models[reference].config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        input_ids = input_ids[:, : context - decode_tokens]
    seconds: dict[str, dict[str, list[float]]] = {name: {"prompt": [], "decode": []} for name in models}
    for index in range(rounds + 1):
        order = list(models) if index % 2 == 0 else list(models)[::-1]
        for name in order:
            prompt, decode = _time_once(models[name], input_ids, decode_tokens)
            if index:
                seconds[name]["prompt"].append(prompt)
                seconds[name]["decode"].append(decode)
        advance(1)

    length = input_ids.shape[1]
    counts = {"prompt": length, "decode": decode_tokens}
    setting = f"batch 1, prompt of {length}, {decode_tokens} decoded, {torch.get_num_threads()} threads"
    measurements = []
    for name in models:
        for phase, count in counts.items():
            times = seconds[name][phase]
            ratios = [before / after for before, after in zip(seconds[reference][phase], times, strict=True)]
            for measure, unit, value in (
                (f"{phase}_tokens_per_second", "tokens/s", count / statistics.median(times)),
                (f"{phase}_speedup", "ratio", statistics.median(ratios)),
            ):
                measurements.append(
                    Measurement(name=measure, value=value, unit=unit, model=name, data=setting, samples=rounds)
                )
    return [m for m in measurements if not (m.name.endswith("_speedup") and m.model == reference)]


def _time_once(model: PreTrainedModel, input_ids: torch.Tensor, decode_tokens: int) -> tuple[float, float]:
    """Seconds to read the prompt, and to decode that many tokens after it."""
    input_ids = input_ids.to(model.device)
    cache = DynamicCache(config=model.config)
    began = _now(model)
    output = model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    token = output.logits[:, -1:].argmax(dim=-1)
    prompt_end = _now(model)
    for _ in range(decode_tokens):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        token = output.logits[:, -1:].argmax(dim=-1)
    return prompt_end - began, _now(model) - prompt_end


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


@torch.no_grad()
def kv_bytes_per_token(model: PreTrainedModel, input_ids: torch.Tensor) -> float:
    """Bytes that the model's cache really holds, a token of one sequence; measured, so sliding windows count."""
    cache = DynamicCache(config=model.config)
    model(input_ids=input_ids.to(model.device), past_key_values=cache, use_cache=True)
    tensors: list[torch.Tensor] = [
        tensor for keys, values, *_ in cache for tensor in (keys, values) if tensor is not None
    ]
    return sum(tensor.nbytes for tensor in tensors) / input_ids.numel()
