"""Tensors that a 16-bit checkpoint stores in another precision than the rest: a router's bias, decay rates.

They are computed with in whatever transformers makes of them, and written as they were stored, byte for byte, where
no repair has changed them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, rename_source_key

from depthcut.model.headers import TensorHeader, stored_tensors

FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_stored: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""What the file holds for a tensor of a model."""


def remember_islands(model: PreTrainedModel, folder: Path, usual: torch.dtype) -> None:
    """Remembers what a model's files hold in another precision than most of them.

    Args:
        model: loaded from the folder, on the device where it stays.
        usual: what the configuration says that weights are stored in.
    """
    if usual.itemsize > 2:
        return
    stored = {name: tensor for name, tensor in stored_tensors(folder).items() if tensor.dtype in FLOATING}
    held = dict(_tensors(model))
    odd_in_memory = {name.rpartition(".")[2] for name, tensor in held.items() if tensor.dtype != model.dtype}
    others = {
        name: tensor
        for name, tensor in stored.items()
        if FLOATING[tensor.dtype] != usual or name.rpartition(".")[2] in odd_in_memory
    }
    if sum(tensor.num_elements for tensor in others.values()) * 2 > sum(t.num_elements for t in stored.values()):
        return  # The configuration does not say what the files are stored in.
    lost = []
    for name, target in _named_in(model, others, held).items():
        tensor = held.get(target)
        if tensor is None:
            if FLOATING[others[name].dtype] != usual:
                lost.append(name)
        elif tensor.is_floating_point() and tuple(tensor.shape) == others[name].shape:
            _stored[tensor] = _read(others[name], name)
    if lost:
        print(
            f"{len(lost)} tensors of {folder}, such as {lost[0]}, are stored in another precision than the rest and "
            "joined with others on loading; they are written in the precision of the rest",
            file=sys.stderr,
        )


def stored_value(tensor: torch.Tensor) -> torch.Tensor | None:
    """What a file holds for a tensor, on the CPU; None where that is nothing special, or the tensor was changed."""
    found: torch.Tensor | None = _stored.get(tensor)  # type: ignore[no-untyped-call]
    if found is None or not torch.equal(found.to(tensor.dtype), tensor.detach().cpu()):
        return None
    return found


def is_island(tensor: torch.Tensor) -> bool:
    """Whether a tensor is stored in a precision of its own."""
    return tensor in _stored


def islands(model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of a model with what its files hold for them."""
    for _, tensor in _tensors(model):
        found = stored_value(tensor)
        if found is not None:
            yield tensor, found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _named_in(
    model: PreTrainedModel, stored: Mapping[str, TensorHeader], held: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Names of a model's tensors by those of the files; of what is joined on loading, a name that no tensor has."""
    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [entry for entry in conversions if not isinstance(entry, WeightConverter)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    found = {}
    for name in stored:
        target, joined = rename_source_key(name, renamings, converters, model.base_model_prefix, dict(held))
        if not any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ()):
            found[name] = f"{target} (joined)" if joined else target
    return found


def _read(stored: TensorHeader, name: str) -> torch.Tensor:
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(name).clone()  # type: ignore[no-any-return]
