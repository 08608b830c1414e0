"""Layers that a quantisation names by the index of their block, and what they are called when blocks leave.

What is named there stays in full precision or has a precision of its own, so a name that keeps an old index makes
another layer be read as what it is not. Sources: `llm_int8_skip_modules` of bitsandbytes, `ignore` and the groups'
`targets` of compressed-tensors, `modules_to_not_convert` of AWQ and FP8, `dynamic` of GPTQModel, whose keys are
patterns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from depthcut.model.branches import Architecture
from depthcut.model.packing import PackedBlock
from depthcut.model.quantisation import quantisation_entries
from depthcut.types import InputError

LISTS = (
    "llm_int8_skip_modules",
    "ignore",
    "ignored_layers",
    "modules_to_not_convert",
    "modules_to_convert",
    "exclude",
)
TABLES = ("dynamic",)
GROUPS = "config_groups"
"""Schemes of compressed-tensors, each with the names, patterns or classes of its layers."""

INDEXED = re.compile(r"(?P<head>.*?\\?\.)(?P<index>\d+)(?P<tail>(?:\\?\..*)?\$?)")
"""A name or pattern whose first component of digits alone is the block's index."""


def renumber_names(config: PreTrainedConfig, packed: Sequence[PackedBlock], architecture: Architecture) -> None:
    """Makes the names in a model's quantisation those of the packed blocks, in place; those of gone layers leave.

    Raises:
        InputError: see `renumbered_entries`.
    """
    given = getattr(config, "quantization_config", None)
    if isinstance(given, dict):
        config.quantization_config = renumbered_entries(given, packed, architecture)
    elif given is not None:
        for name, value in renumbered_entries(vars(given), packed, architecture).items():
            setattr(given, name, value)


def check_names(config: PreTrainedConfig, packed: Sequence[PackedBlock], architecture: Architecture) -> None:
    """Raises InputError where a quantisation names layers in a way that could not be said of the packed blocks."""
    renumbered_entries(quantisation_entries(config), packed, architecture)


def renumbered_entries(
    entries: Mapping[str, Any], packed: Sequence[PackedBlock], architecture: Architecture
) -> dict[str, Any]:
    """The entries of a `quantization_config` with the names of the packed blocks; those of gone layers leave.

    Raises:
        InputError: a pattern counts blocks in a way that is not one index, or means parts of blocks that part.
    """

    def of_list(names: Sequence[str]) -> list[str]:
        return [new for name in names for new in _renamed(name, packed, architecture)]

    found = dict(entries)
    for name in LISTS:
        if found.get(name):
            found[name] = of_list(found[name])
    for name in TABLES:
        if found.get(name):
            found[name] = {new: value for old, value in found[name].items() for new in of_list([old])}
    if isinstance(groups := found.get(GROUPS), dict):
        found[GROUPS] = {
            name: group | {"targets": of_list(group["targets"])} if group.get("targets") else group
            for name, group in groups.items()
        }
    return found


def _renamed(entry: str, packed: Sequence[PackedBlock], architecture: Architecture) -> list[str]:
    """What a name or pattern is called after blocks have left; several where a block's parts have parted.

    Raises:
        InputError: a pattern counts blocks in a way that is not one index, or means parts of blocks that part.
    """
    blocks = architecture.blocks.rpartition(".")[2]
    if re.search(rf"\b{blocks}\\?\.(?!\d+(?:\\?\.|\$|$))[^.]*\d", entry):
        raise _refusal(entry)
    found = INDEXED.fullmatch(entry)
    if found is None:
        return [entry]
    head, tail, source = found["head"], found["tail"], int(found["index"])
    part = tail.replace("\\", "").removeprefix(".").partition(".")[0]
    kinds = [kind for kind, branch in architecture.branches.items() if part in branch.modules]
    renamed = []
    for index, block in enumerate(packed):
        here = [kind for kind, layer in block.sources.items() if layer == source]
        if set(here) & set(kinds) or (not kinds and here and len(here) == len(block.sources)):
            renamed.append(f"{head}{index}{tail}")
        elif here and not kinds:
            if tail:
                raise _refusal(entry)
            dot = "\\." if head.endswith("\\.") else "."
            branches = [branch for kind, branch in architecture.branches.items() if kind in here]
            modules = [module for branch in branches for module in branch.modules]
            renamed += [f"{head}{index}{dot}{module}" for module in modules]
    return renamed


def _refusal(entry: str) -> InputError:
    return InputError(
        f"the blocks of this quantised model cannot be counted anew, since its quantization_config names layers as "
        f"{entry!r}; prune the unquantised model, or write one name for each block there"
    )
