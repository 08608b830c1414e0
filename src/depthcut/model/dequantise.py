"""A GGUF as a Hugging Face directory, tensor by tensor, for models that do not fit into memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from depthcut.gguf.quick_reader import QuickReader

INDEX = "model.safetensors.index.json"


def dequantise(
    file: Path, config: PreTrainedConfig, dtype: torch.dtype, folder: Path, rounded_to: torch.dtype | None = None
) -> None:
    """Writes configuration and weights into an existing folder; memory holds one block's tensors at most.

    Names and layouts are those that transformers gives a GGUF's tensors when it loads one.

    Args:
        dtype: of the written tensors.
        rounded_to: a dtype whose values they take, where that has fewer.
    """
    config.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    reader = QuickReader(file)
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(  # type: ignore[no-untyped-call]
        config=config.to_dict()
    )
    names = get_gguf_hf_weights_map(skeleton, processor)
    # Experts are put together here by the processors of their families.
    parsed: dict[str, Any] = {"config": config.to_dict(), "tensors": {}}
    where: dict[str, str] = {}
    total, last = 0, ""
    for tensor in [*reader.tensors, None]:
        block = "" if tensor is None else _block(tensor.name)
        if tensor is None or block != last:
            total += _write(
                {name: value.to(rounded_to or dtype).to(dtype) for name, value in parsed["tensors"].items()},
                folder,
                where,
            )
            parsed["tensors"].clear()
            last = block
        if tensor is None:
            break
        found = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        if found.name in names:
            parsed["tensors"][names[found.name]] = torch.from_numpy(np.copy(found.weights))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}), encoding="utf-8")


def _block(name: str) -> str:
    """Which block a tensor of a GGUF belongs to; those of none go by themselves."""
    match = re.match(r"blk\.(\d+)\.", name)
    return match[1] if match else name


def _write(tensors: dict[str, torch.Tensor], folder: Path, where: dict[str, str]) -> int:
    if not tensors:
        return 0
    file = f"model-{len(set(where.values())):05}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})
    where |= dict.fromkeys(tensors, file)
    return sum(tensor.nbytes for tensor in tensors.values())
