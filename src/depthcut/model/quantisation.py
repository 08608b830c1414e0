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
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.wrappers import decoder_config
from depthcut.types import InputError

BITSANDBYTES_FORMS = ("int8", "nf4", "fp4")

COMPRESSED_TENSORS = "compressed-tensors"
TORCHAO = "torchao"
PACKAGES = dict.fromkeys(BITSANDBYTES_FORMS, ("bitsandbytes", "'depthcut[quantise]'")) | {
    COMPRESSED_TENSORS: (COMPRESSED_TENSORS, "'depthcut[quantise]'"),
    TORCHAO: (TORCHAO, TORCHAO),
}
"""Packages that reading a kind of storage takes, and what to install for it."""

DEQUANTISED = ("fp8", "mxfp8", "mxfp4", "fbgemm_fp8", COMPRESSED_TENSORS, "gptq", "awq")
"""Ways of storing weights that are computed with dequantised, and written as they were stored."""


def quantisation_entries(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of quantisation; empty where weights are stored plainly."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        given = getattr(decoder_config(config), "quantization_config", None) or {}
    return given if isinstance(given, dict) else dict(given.to_dict())


def quantisation(config: PreTrainedConfig) -> str | None:
    """What the weights are stored as: `int8`, `nf4` or `fp4` by bitsandbytes, else the method's name (`gptq`).

    None where they are not quantised.
    """
    return kind_of(quantisation_entries(config))


def kind_of(entries: Mapping[str, Any]) -> str | None:
    """What weights are stored as, by the entries of a `quantization_config`; see `quantisation`."""
    if not entries:
        return None
    if entries.get("load_in_4bit"):
        return str(entries["bnb_4bit_quant_type"])
    if entries.get("load_in_8bit"):
        return "int8"
    method = entries.get("quant_method", "unknown")
    return str(method.value if isinstance(method, Enum) else method)


LAYOUTS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
"""Ways of storing that have several layouts: the entry that names it, and those that are unpacked here."""


def require_reader(stored: str, what: str, entries: Mapping[str, Any] | None = None) -> None:
    """Raises InputError where a kind of storage is not known or the package that reads it is missing.

    Args:
        what: subject of the sentence.
        entries: of the `quantization_config`, which may name a layout that nothing here unpacks.
    """
    if stored not in (*BITSANDBYTES_FORMS, *DEQUANTISED, TORCHAO):
        raise InputError(
            f"{what} cannot be computed with: neither transformers nor depthcut dequantises that; give the model "
            f"unquantised, or stored as {', '.join(DEQUANTISED)}, {TORCHAO} or by bitsandbytes"
        )
    package, install = PACKAGES.get(stored, ("", ""))
    if package and importlib.util.find_spec(package.replace("-", "_")) is None:
        raise InputError(f"{what} needs the package {package}; run: pip install {install}")
    entry, known = LAYOUTS.get(stored, ("", ()))
    layout = str((entries or {}).get(entry) or (known or [""])[0]).lower()
    if entry and layout not in known:
        raise InputError(
            f"{what} is laid out for the kernels of one engine ({entry} {layout}), which nothing unpacks here; give it "
            f"in the layout {' or '.join(known)}"
        )


def require_unquantised(config: PreTrainedConfig, form: str) -> None:
    """Raises InputError where a format cannot be made because the weights are quantised already."""
    stored = quantisation(config)
    if stored is not None:
        raise InputError(
            f"the format {form} cannot hold this model: its weights are stored as {stored}, which it would round a "
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
