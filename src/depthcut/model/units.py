"""What each unit weighs: parameters, and bytes of KV cache a token.

Sizes come from the modules themselves, so they are right for every family and need no weights: a model built on
the meta device has the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from depthcut.model.architectures import Architecture
from depthcut.model.quantisation import num_elements
from depthcut.types import Unit, UnitKind, UnitSize


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


def measure_sizes(model: PreTrainedModel, architecture: Architecture) -> ModelSizes:
    """Sizes of a model, on any device (the meta device too)."""
    config = model.config.get_text_config(decoder=True)
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_bytes = 2 * num_kv_heads * head_dim * model.dtype.itemsize

    units: dict[Unit, UnitSize] = {}
    for layer, block in enumerate(architecture.block_list(model)):
        for kind, branch in architecture.branches.items():
            modules = (getattr(block, name) for name in branch.modules)
            parameters = sum(num_elements(parameter) for module in modules for parameter in module.parameters())
            units[Unit(layer, kind)] = UnitSize(
                parameters=parameters, kv_bytes_per_token=_kv_bytes(kind, parameters, kv_bytes)
            )
    return ModelSizes(sum(num_elements(parameter) for parameter in model.parameters()), units)


def _kv_bytes(kind: UnitKind, parameters: int, kv_bytes: int) -> int:
    """A removed attention has no parameters left and keeps nothing."""
    return kv_bytes if kind == "attn" and parameters else 0


def sizes_from_config(config: PreTrainedConfig, architecture: Architecture, dtype: torch.dtype) -> ModelSizes:
    """Sizes of a model that is not loaded: built from its configuration on the meta device, in milliseconds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return measure_sizes(model, architecture)
