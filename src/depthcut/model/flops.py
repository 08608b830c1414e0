"""Floating-point operations of a decoder, unit by unit, as transformers computes them; needs no weights.

Counted are products with matrices, a multiplication and an addition each: projections, the two products of attention,
the vocabulary projection. Norms, activations, rotary angles and the scans of state-space mixers are left out: they are
under one percent of any real model. Attention counts the whole square of a sequence, since that is what is asked of
the kernels; those that leave out what the causal mask hides do about half. Of experts those count that a token goes
through, save in families whose implementation runs them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.architectures import family_type
from depthcut.model.branches import Architecture
from depthcut.model.heads import head_of_model, output_width
from depthcut.model.units import attends, head_dim
from depthcut.model.wrappers import layer_config
from depthcut.types import Unit

RUN_EVERY_EXPERT = frozenset({"llama4_text"})
"""Families whose transformers code computes every expert for every token and weights the others with zero."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "moe_top_k", "num_experts_per_token")


@dataclass(frozen=True)
class UnitWork:
    """What one unit computes.

    Attributes:
        token_flops: with its matrices, a token.
        attended_flops: in attention, a pair of a token and one that it may look at.
    """

    token_flops: float
    attended_flops: float

    def flops(self, length: int) -> float:
        """Of one sequence."""
        return self.token_flops * length + self.attended_flops * length**2


@dataclass(frozen=True)
class ModelWork:
    """What a whole model computes.

    Attributes:
        logit_flops: of the vocabulary projection, or of a classifier's, a position.
        widest: numbers that the widest step inside a unit holds for one token.
        itemsize: bytes of a number.
    """

    units: dict[Unit, UnitWork]
    logit_flops: float
    widest: int
    hidden_size: int
    vocabulary: int
    itemsize: int

    def block_flops(self, length: int) -> float:
        """Of all units on one sequence."""
        return sum(unit.flops(length) for unit in self.units.values())

    def forward_flops(self, length: int) -> float:
        """Of a forward pass with the logits of every position, one sequence."""
        return self.block_flops(length) + self.logit_flops * length


def flops_per_pair(config: PreTrainedConfig) -> float:
    """Of one attention for a token and one that it looks at: a score and a weighted value a head."""
    config = config.get_text_config(decoder=True)
    config = layer_config(config, 0)
    if getattr(config, "kv_lora_rank", None):
        widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        widths = 2 * head_dim(config)
    return float(2 * config.num_attention_heads * widths)


def measure_work(model: PreTrainedModel, architecture: Architecture) -> ModelWork:
    """The work of a model, on any device (the meta device too)."""
    config = model.config.get_text_config(decoder=True)
    of_all = layer_config(config, 0)
    num_experts = next((getattr(of_all, name) for name in _EXPERTS if getattr(of_all, name, None)), None)
    active = next((getattr(of_all, name) for name in _EXPERTS_OF_A_TOKEN if getattr(of_all, name, None)), 1)
    share = 1.0 if num_experts is None or family_type(model.config) in RUN_EVERY_EXPERT else active / num_experts
    units: dict[Unit, UnitWork] = {}
    widest = 0
    for layer, block in enumerate(architecture.block_list(model)):
        for kind, of_kind in architecture.branches.items():
            branch = of_kind.of(block)
            token_flops = 0.0
            for name in branch.modules:
                for path, parameter in getattr(block, name).named_parameters():
                    if parameter.dim() < 2:
                        continue
                    experts = num_experts is not None and _is_of_experts(path, parameter, num_experts)
                    token_flops += 2 * parameter.numel() * (share if experts else 1.0)
                    width = parameter.shape[-2:] if experts else parameter.shape[:2]
                    widest = max(widest, *width)
            core = getattr(block, branch.core) if branch.core else block
            pairs = flops_per_pair(layer_config(config, layer)) if token_flops and attends(kind, core) else 0.0
            units[Unit(layer, kind)] = UnitWork(token_flops, pairs)
    head = head_of_model(model)
    width = output_width(model, head)
    hidden_size = int(config.hidden_size) if head != "tokens" else model.get_output_embeddings().weight.shape[1]
    # An embedding is what the stream is, so no product makes it.
    logit_flops = 0.0 if head == "embedding" else 2.0 * width * hidden_size
    return ModelWork(units, logit_flops, widest, hidden_size, width, model.dtype.itemsize)


def _is_of_experts(path: str, parameter: nn.Parameter, num_experts: int) -> bool:
    """Whether a matrix is one of the experts': stacked, or in a list of modules; a shared expert's is not."""
    stacked = parameter.dim() == 3 and parameter.shape[0] == num_experts
    return stacked or ("experts." in path and "shared" not in path)
