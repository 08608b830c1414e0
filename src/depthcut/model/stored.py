"""Models whose files hold quantised weights and that are computed with dequantised: reading them, and what lies where.

A removal moves whole tensors, so what remains can be copied from the source's files as it is stored there. For that
every tensor of a loaded model is known by the names that it is stored under; surgery shares tensors, and whoever
changes weights replaces them, so a model all of whose tensors are known is the source's, whatever has left it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from depthcut.model.branches import Architecture
from depthcut.model.headers import stored_tensors
from depthcut.model.packing import PackedBlock
from depthcut.model.paging import pager_of
from depthcut.model.quantisation import kind_of, quantisation_entries
from depthcut.model.sublayers import is_marked
from depthcut.model.wrappers import num_blocks

SCALES = "_scale_inv"


@dataclass(frozen=True)
class Home:
    """Where a tensor of a model lies: names in the safetensors of a folder, several where it was put together."""

    folder: Path
    names: tuple[str, ...]


_homes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def reading_config(config: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """A configuration that makes transformers dequantise what it loads."""
    found = copy.deepcopy(config)
    entries = dict(quantisation_entries(config)) | {"dequantize": True}
    if needs_unpacking(entries, folder):
        from depthcut.model.unpacking import PREFIX

        entries["quant_method"] = f"{PREFIX}{kind_of(entries)}"
    found.quantization_config = entries
    return found


def needs_unpacking(entries: Mapping[str, Any], folder: Path) -> bool:
    """Whether plain transformers cannot dequantise the weights of a folder, so that `unpacking.py` has to.

    Args:
        entries: of its `quantization_config`.
    """
    stored = kind_of(entries)
    if stored == "fp8":
        return _blocks_reach_over_edges(
            {name: header.shape for name, header in stored_tensors(folder).items()}, entries.get("weight_block_size")
        )
    return stored in ("gptq", "awq", "fbgemm_fp8")


def _blocks_reach_over_edges(shapes: Mapping[str, tuple[int, ...]], block: list[int] | None) -> bool:
    return block is not None and any(
        size % step
        for name in shapes
        if name.endswith(SCALES) and len(shapes[name]) > 1
        for size, step in zip(shapes.get(name.removesuffix(SCALES), ())[-2:], block, strict=False)
        if size > step
    )


def remember(
    model: PreTrainedModel, architecture: Architecture, folder: Path, *, as_stored: bool, dtype: torch.dtype
) -> None:
    """Notes of every tensor of a loaded model under which names it is stored.

    Also takes the dequantisation out of what transformers would undo on saving: a dequantised model is saved as it is.

    Args:
        as_stored: whether it is to be written as it is stored; else nothing is noted.
        dtype: what is computed in. Where that is float32, weights are widened that transformers left as they are stored
            beside FP8 ones: it computes with one precision only.
    """
    if dtype == torch.float32 and pager_of(model) is None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    tensors = model.state_dict(keep_vars=True)
    names: dict[str, list[str]] = {name: [] for name in tensors}
    for stored in stored_tensors(folder):
        module = stored.rpartition(".")[0]
        renamed = [
            rename_source_key(name, renamings, converters, model.base_model_prefix, tensors)[0]
            for name in (stored, f"{module}.weight")
        ]
        if (owner := _owner(renamed, tensors)) and _same_block(architecture, stored, owner):
            names[owner].append(stored)
    for name, stored_names in names.items() if as_stored else ():
        known = _homes.get(tensors[name])  # type: ignore[no-untyped-call]
        _homes[tensors[name]] = Home(folder, (*(known.names if known else ()), *stored_names))
    used: Any = [entry for entry in transforms if entry.was_used()]
    model._weight_conversions = used


def _owner(renamed: list[str], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The tensor of a model that something stored belongs to: itself, or one of the module that it lies in."""
    for name in renamed:
        if name in tensors:
            return name
    path = renamed[0]
    while "." in path:
        path = path.rpartition(".")[0]
        if found := next((name for name in tensors if name.startswith(f"{path}.")), None):
            return found
    return None


def _same_block(architecture: Architecture, stored: str, owner: str) -> bool:
    return block_index(architecture, stored) == block_index(architecture, owner)


def block_index(architecture: Architecture, name: str) -> int | None:
    """The block that a tensor's name says, None where it is of none."""
    found = _indexed(architecture).search(name)
    return None if found is None else int(found[2])


def renumbered(architecture: Architecture, name: str, index: int) -> str:
    """The name with another index of its block."""
    return _indexed(architecture).sub(rf"\g<1>{index}\g<3>", name, count=1)


def _indexed(architecture: Architecture) -> re.Pattern[str]:
    return re.compile(rf"((?:^|\.){re.escape(architecture.blocks.rpartition('.')[2])}\.)(\d+)(\.)")


@dataclass(frozen=True)
class StoredModel:
    """A model every tensor of which lies in a source's files.

    Attributes:
        names: name in the source by name in the model's own files.
        blocks: what of the source each block of the model is made of.
    """

    folder: Path
    names: dict[str, str]
    blocks: list[PackedBlock]

    @property
    def source_entries(self) -> dict[str, Any]:
        """The source's config.json."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def stored_model(model: PreTrainedModel, architecture: Architecture) -> StoredModel | None:
    """Where all that a model holds is stored; None where some of it is not, or could not be read again as it is."""
    tensors = model.state_dict(keep_vars=True)
    homes = {name: _homes.get(tensor) for name, tensor in tensors.items()}  # type: ignore[no-untyped-call]
    folders = {None if home is None else home.folder for home in homes.values()}
    folder = folders.pop()
    if folder is None or folders:
        return None
    if is_marked(model.config) and not all(_lies_alone(name, home) for name, home in homes.items()):
        return None
    names: dict[str, str] = {}
    for name, home in homes.items():
        index = block_index(architecture, name)
        names |= {
            (stored if index is None else renumbered(architecture, stored, index)): stored for stored in home.names
        }
    blocks = [
        PackedBlock(
            {
                kind: found
                for kind, branch in architecture.branches.items()
                if (
                    found := _source_of(branch.of(block).modules, homes, f"{architecture.blocks}.{index}", architecture)
                )
                is not None
            }
        )
        for index, block in enumerate(architecture.block_list(model))
    ]
    assert len(blocks) == num_blocks(model.config)
    return StoredModel(folder, names, blocks)


def _lies_alone(name: str, home: Home) -> bool:
    """Whether a tensor is stored under the name of its own module: types of our own put nothing together on loading."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    return all(stored.rpartition(".")[0].rpartition(".")[2] == module for stored in home.names)


def _source_of(
    modules: tuple[str, ...], homes: Mapping[str, Home], block: str, architecture: Architecture
) -> int | None:
    """The source's block that a branch comes from; None where the branch is gone."""
    for name, home in homes.items():
        if any(name.startswith(f"{block}.{module}.") for module in modules) and home.names:
            return block_index(architecture, home.names[0])
    return None
