"""Stored weights that transformers has no way to dequantise on its own, as operations of its loader.

transformers reads GPTQ and AWQ only through packages with kernels of their own, FBGEMM's FP8 only on a GPU, and takes
FP8 blocks that reach over the edge of a matrix (the 576 rows of DeepSeek-V3's `kv_a_proj_with_mqa` in blocks of 128)
for ones of another size. Registered under names of our own, so that plain loading stays what it is. Sources of the
layouts: GPTQ, arXiv 2210.17323, as AutoGPTQ packs it; AWQ, arXiv 2306.00978, as AutoAWQ's `gemm` does.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from transformers.core_model_loading import ConversionOps
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.utils.quantization_config import FineGrainedFP8Config, QuantizationConfigMixin

WORD_BITS = 32

AWQ_BITS = 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring columns the nibbles of a word hold, from the lowest on."""


def unpack_words(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The small integers of a run of words, which hold them bit after bit, from the lowest on.

    Args:
        packed: (words, columns) int32; as many words as no integer reaches over the end of, or a multiple of that.

    Returns:
        (words * 32 / bits, columns) int32.
    """
    num_words, num_columns = packed.shape
    at_once = bits // math.gcd(bits, WORD_BITS)
    words = (packed.long() & 0xFFFFFFFF).reshape(num_words // at_once, at_once, num_columns)
    values = []
    for index in range(at_once * WORD_BITS // bits):
        word, shift = divmod(index * bits, WORD_BITS)
        value = words[:, word] >> shift
        if shift + bits > WORD_BITS:
            value |= words[:, word + 1] << (WORD_BITS - shift)
        values.append((value & (2**bits - 1)).int())
    return torch.stack(values, dim=1).reshape(-1, num_columns)


def from_gptq(parts: dict[str, torch.Tensor], entries: dict[str, Any]) -> torch.Tensor:
    """A weight, (outputs, inputs) float32, from `qweight`, `qzeros`, `scales` and, where inputs are sorted, `g_idx`."""
    packed, scales = parts["qweight"], parts["scales"].float()
    sorted_rows = parts.get("g_idx")
    num_inputs = len(packed) * WORD_BITS // entries["bits"] if sorted_rows is None else len(sorted_rows)
    bits = len(packed) * WORD_BITS // num_inputs
    group_size = -(-num_inputs // len(scales))
    groups = torch.arange(num_inputs) // group_size if sorted_rows is None else sorted_rows.long()
    # Zero points are packed along the outputs. The first version of the format stores them less one.
    zeros = unpack_words(parts["qzeros"].T.contiguous(), bits).T
    if entries.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)
    return ((unpack_words(packed, bits) - zeros[groups]) * scales[groups]).T


def from_awq(parts: dict[str, torch.Tensor], _: dict[str, Any]) -> torch.Tensor:
    """A weight, (outputs, inputs) in float32, from `qweight`, `qzeros` and `scales`."""
    integers, scales = _unpack_awq(parts["qweight"]), parts["scales"].float()
    group_size = len(integers) // len(scales)
    if "qzeros" in parts:
        zeros = _unpack_awq(parts["qzeros"])
    else:
        zeros = torch.full(scales.shape, 2 ** (AWQ_BITS - 1), dtype=torch.int32)
    spread = [values.repeat_interleave(group_size, dim=0) for values in (zeros, scales)]
    return ((integers - spread[0]) * spread[1]).T


def _unpack_awq(packed: torch.Tensor) -> torch.Tensor:
    """(rows, columns) int32 from (rows, columns / 8)."""
    values = torch.empty((*packed.shape, len(AWQ_ORDER)), dtype=torch.int32)
    for nibble, column in enumerate(AWQ_ORDER):
        values[..., column] = (packed >> (AWQ_BITS * nibble)) & (2**AWQ_BITS - 1)
    return values.flatten(1)


def from_fbgemm(parts: dict[str, torch.Tensor], _: dict[str, Any]) -> torch.Tensor:
    """A weight, (outputs, inputs) in float32, from FP8 values and a scale for each row."""
    return parts["weight"].float() * parts["weight_scale"].float()


class Unpack(ConversionOps):
    """Makes weights of what is stored of each; others pass."""

    def __init__(self, hf_quantizer: Unpacking) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], full_layer_name: str, model: torch.nn.Module, **others: Any
    ) -> dict[str, Any]:
        """Of one module, or of all experts that a model stacks; then values are lists of one tensor an expert."""
        by_module: dict[str, dict[str, list[torch.Tensor]]] = {}
        for pattern, tensors in input_dict.items():
            module, _, part = pattern.rpartition(".")
            by_module.setdefault(module, {})[part] = tensors if isinstance(tensors, list) else [tensors]
        dtype = model.get_parameter(full_layer_name).dtype
        converted: dict[str, Any] = {}
        for module, parts in by_module.items():
            weights = [
                self._weight(dict(zip(parts, one, strict=True)), dtype) for one in zip(*parts.values(), strict=True)
            ]
            if module:
                converted[f"{module}.weight"] = weights
            else:
                converted[full_layer_name] = weights[0]
        return converted

    def _weight(self, parts: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        if len(parts) == 1 and "weight" in parts:
            return parts["weight"].to(dtype)
        weight: torch.Tensor = self.hf_quantizer.unpack(parts, vars(self.hf_quantizer.quantization_config))
        return weight.to(dtype).contiguous()


class Unpacking(HfQuantizer):
    """What transformers asks about a way of storing; the model that it loads is an ordinary one.

    Attributes:
        unpack: makes a weight of its parts.
    """

    unpack: ClassVar[Any]

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": Unpack}

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class EntriesConfig(QuantizationConfigMixin):
    """Entries of a `quantization_config` as they are."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


class FromGptq(Unpacking):
    serialized_names = {"weight": ["weight", "qweight", "qzeros", "scales", "g_idx"]}  # noqa: RUF012
    unpack = staticmethod(from_gptq)


class FromAwq(Unpacking):
    serialized_names = {"weight": ["weight", "qweight", "qzeros", "scales"]}  # noqa: RUF012
    unpack = staticmethod(from_awq)


class FromFbgemm(Unpacking):
    serialized_names = {"weight": ["weight", "weight_scale", "input_scale_ub"]}  # noqa: RUF012
    unpack = staticmethod(from_fbgemm)


class OverEdges(Fp8Dequantize):
    """FP8 whose last blocks reach over the edge: each value has the scale of its block by the configuration."""

    def _dequantize_one(self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype: Any = None) -> torch.Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block and scales.dim() == quantized.dim():
            for dim, size in zip((-2, -1), block, strict=True):
                scales = scales.repeat_interleave(size, dim=dim).narrow(dim, 0, quantized.shape[dim])
        return super()._dequantize_one(quantized, scales, output_dtype)


class FromFp8(FineGrainedFP8HfQuantizer):
    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": OverEdges}


PREFIX = "depthcut-"
"""Begins the names under which these ways are known to transformers."""

for name, quantizer, config in (
    ("gptq", FromGptq, EntriesConfig),
    ("awq", FromAwq, EntriesConfig),
    ("fbgemm_fp8", FromFbgemm, EntriesConfig),
    ("fp8", FromFp8, FineGrainedFP8Config),
):
    register_quantization_config(PREFIX + name)(config)
    register_quantizer(PREFIX + name)(quantizer)
