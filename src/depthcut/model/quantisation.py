"""Models whose weights are stored quantised: what they are stored as, and what bitsandbytes needs to be relied on.

bitsandbytes 0.50 changes its layers when they first run. `settle` makes them keep what they were loaded with, so that a
model can be copied, pruned and saved at any time:

- On CPUs with AVX-512 bf16 a 4-bit layer reorders its weights in place for a faster kernel. Copies that share them lose
  track of it, and what is then saved is not the model any more.
- An 8-bit layer moves its scales out of the shared weight, so that of two models that share it only the first finds
  them; the other would quantise the integers once more.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from enum import Enum

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.types import InputError

BITSANDBYTES_FORMS = ("int8", "nf4", "fp4")


def quantisation(config: PreTrainedConfig) -> str | None:
    """What the weights are stored as: `int8`, `nf4` or `fp4` by bitsandbytes, else the method's name (`gptq`).

    None where they are not quantised.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    entries = given if isinstance(given, dict) else given.to_dict()
    if entries.get("load_in_4bit"):
        return str(entries["bnb_4bit_quant_type"])
    if entries.get("load_in_8bit"):
        return "int8"
    method = entries.get("quant_method", "unknown")
    return str(method.value if isinstance(method, Enum) else method)


def require_reader(stored: str, what: str) -> None:
    """Raises InputError where the package that reads a kind of storage is missing.

    Args:
        what: subject of the sentence.
    """
    if stored in BITSANDBYTES_FORMS and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{what} needs the package bitsandbytes; run: pip install 'depthcut[quantise]'")


def require_unquantised(config: PreTrainedConfig, form: str) -> None:
    """Raises InputError where a form cannot be made because the weights are quantised already."""
    stored = quantisation(config)
    if stored is not None:
        raise InputError(
            f"the form {form} cannot hold this model: its weights are stored as {stored}, which it would round a "
            "second time or not understand; make it from the unquantised model, or use --to hf"
        )


def quiet() -> None:
    """Silences the warnings of bitsandbytes, which come with every product that it computes; lasts."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settle(model: PreTrainedModel) -> None:
    """Makes bitsandbytes' layers keep their tensors as they were loaded, in place; other models stay as they are."""
    if quantisation(model.config) not in BITSANDBYTES_FORMS:
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt) and layer.weight.CB is not None:
            layer.init_8bit_state()


def tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Every tensor that a model holds: parameters, buffers, and the integers and scales of 8-bit layers."""
    yield from model.parameters()
    yield from model.buffers()
    if quantisation(model.config) == "int8":
        for layer in model.modules():
            state = getattr(layer, "state", None)
            yield from (held for name in ("CB", "SCB") if (held := getattr(state, name, None)) is not None)


def num_elements(parameter: torch.Tensor) -> int:
    """How many numbers a parameter holds; 4-bit weights are packed, two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()
