"""What each unit weighs: parameters, and bytes of KV cache a token.

Sizes come from the modules themselves, so they are right for every family and need no weights: a model built on
the meta device has the same shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.model.quantisation import num_elements
from depthcut.model.wrappers import auto_class, decoder_config, layer_config
from depthcut.types import InputError, Unit, UnitKind, UnitSize

UnitNames = str | int | Unit | Iterable[str | int | Unit]
"""`"21-29"`, `"17.attn,18.attn"`, `21`, a `Unit`, or several of them."""


def choose_units(
    names: UnitNames, units: Sequence[Unit], *, one_based: bool = False, verb: str = "remove"
) -> tuple[Unit, ...]:
    """The units of a model that are named, in order of execution.

    Args:
        names: blocks (`21`, `21-29`) and sublayers (`17.attn`, `17-19.ffn`), the ends of a range included.
        units: all units of the model.
        one_based: whether blocks are counted from 1 in the names.
        verb: what is to be done with them, for the error.

    Raises:
        InputError: a name is of no unit of this model.
    """
    if isinstance(names, str | int | Unit):
        names = [names]
    parts = [part.strip() for name in names for part in str(name).split(",") if part.strip()]
    first, last = int(one_based), units[-1].layer + one_based
    chosen: set[Unit] = set()
    for part in parts:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:\.(\w+))?", part)
        named: set[Unit] = set()
        if match is not None:
            begin, end = int(match[1]), int(match[2] or match[1])
            if first <= begin <= end <= last:
                layers = range(begin - one_based, end - one_based + 1)
                named = {unit for unit in units if unit.layer in layers and match[3] in (None, unit.kind)}
        if not named:
            kind = sorted({unit.kind for unit in units})[0]
            raise InputError(
                f"cannot {verb} {part!r}: this model has no such units; write a block ({first} to {last}), a range "
                f"({first}-{last}) or a sublayer ({first}.{kind} to {last}.{units[-1].kind})"
            )
        chosen |= named
    return tuple(sorted(chosen))


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a whole model and of its units.

    Attributes:
        parameters: of the whole model, tied weights counted once.
    """

    parameters: int
    units: dict[Unit, UnitSize]

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(size.kv_bytes_per_token for size in self.units.values())

    def parameters_without(self, removed: Iterable[Unit]) -> int:
        return self.parameters - sum(self.units[unit].parameters for unit in removed)

    def kv_bytes_without(self, removed: Iterable[Unit]) -> int:
        return self.kv_bytes_per_token - sum(self.units[unit].kv_bytes_per_token for unit in removed)


def unit_parameters(model: PreTrainedModel, architecture: Architecture) -> dict[Unit, list[nn.Parameter]]:
    """Every parameter of each unit, its own norms included."""
    units: dict[Unit, list[nn.Parameter]] = {}
    for layer, block in enumerate(architecture.block_list(model)):
        counted: set[str] = set()
        for kind, of_kind in architecture.branches.items():
            branch = of_kind.of(block)
            if not branch.core:
                units[Unit(layer, kind)] = list(block.parameters())
                continue
            # A norm that branches share is counted with the first of them: it goes with the whole block.
            names = [name for name in (*branch.shared_norms, *branch.modules) if name not in counted]
            counted.update(names)
            units[Unit(layer, kind)] = [weight for name in names for weight in getattr(block, name).parameters()]
    return units


def measure_sizes(model: PreTrainedModel, architecture: Architecture) -> ModelSizes:
    """Sizes of a model, on any device (the meta device too)."""
    units: dict[Unit, UnitSize] = {}
    blocks = architecture.block_list(model)
    holder = model.get_submodule(architecture.blocks.rpartition(".")[0])
    share = sum(holder.get_parameter(path).numel() for path in architecture.tables) // len(blocks)
    for unit, weights in unit_parameters(model, architecture).items():
        block = blocks[unit.layer]
        branch = architecture.branches[unit.kind].of(block)
        own = any(True for name in branch.modules for _ in getattr(block, name).parameters())
        kv_bytes = 0
        if own:
            config = layer_config(decoder_config(model.config), unit.layer)
            numbers = _kept(unit.kind, getattr(block, branch.core), config) if branch.core else _kept_in(block)
            kv_bytes = numbers * int(model.dtype.itemsize)
        units[unit] = UnitSize(parameters=sum(map(num_elements, weights)) + share, kv_bytes_per_token=kv_bytes)
    return ModelSizes(sum(num_elements(parameter) for parameter in model.parameters()), units)


def attends(kind: UnitKind, core: nn.Module) -> bool:
    """Whether a unit is an attention, which keeps keys; a mixer is one only where it has a map for them."""
    return kind == "attn" or any(hasattr(module, "k_proj") for module in core.modules())


def _kept(kind: UnitKind, core: nn.Module, config: PreTrainedConfig) -> int:
    """Numbers that an attention with parameters keeps of a token."""
    if not attends(kind, core):
        return 0
    if getattr(config, "kv_lora_rank", None):
        # Engines keep the compressed form, and the part of the keys that is rotated.
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    return 2 * _num_kv_heads(config) * head_dim(config)


def _kept_in(block: nn.Module) -> int:
    """Numbers that a whole block keeps of a token: what its maps for keys and values give, where it has such."""
    maps = [getattr(module, name, None) for module in block.modules() for name in ("k_proj", "v_proj")]
    return sum(int(linear.weight.shape[0]) for linear in maps if isinstance(linear, nn.Linear))


def _num_kv_heads(config: PreTrainedConfig) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    given = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(given or config.num_attention_heads)


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one head of an attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model without weights, on the meta device: all its shapes, in milliseconds."""
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def sizes_from_config(config: PreTrainedConfig, architecture: Architecture, dtype: torch.dtype) -> ModelSizes:
    """Sizes of a model that is not loaded."""
    return measure_sizes(empty_model(config, dtype), architecture)


def shapes_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor of the model that a configuration makes."""
    return {name: tuple(tensor.shape) for name, tensor in empty_model(config, torch.float32).state_dict().items()}
