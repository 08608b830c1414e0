"""What a family of decoders looks like: where its blocks are and which modules make up each residual branch.

Everything else in depthcut works on this description, so a new family is one row in `FAMILIES`. A row is only
data; that it is true for a loaded model is proven by the probe in `stream.py` before anything relies on it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from depthcut.types import InputError, Unit, UnitKind

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block, as attribute names of the block.

    Attributes:
        core: the attention or feed-forward module itself.
        projection: dotted path, from the block, of the linear map that writes to the residual stream.
        norms_before: norms between the stream and the core, in order.
        norms_after: norms between the core and the addition to the stream, in order.
    """

    core: str
    projection: str
    norms_before: tuple[str, ...] = ()
    norms_after: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that belong to the branch alone, in order of execution."""
        return (*self.norms_before, self.core, *self.norms_after)


@dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        branches: the residual branches of a block in order of execution, by kind of unit.
        blocks: dotted path of the list of blocks, from the causal LM.
        parallel: whether both branches read the same stream; then sublayers of neighbouring blocks cannot be
            paired anew.
    """

    branches: dict[UnitKind, Branch]
    blocks: str = "model.layers"
    parallel: bool = False

    def block_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """The model's list of blocks."""
        return attrgetter(self.blocks)(model)  # type: ignore[no-any-return]

    def units(self, num_blocks: int) -> tuple[Unit, ...]:
        """Every unit of a model with that many blocks, in order of execution."""
        return tuple(Unit(layer, kind) for layer in range(num_blocks) for kind in self.branches)


PRUNED_PREFIX = "depthcut_"
"""Begins the model type of checkpoints whose blocks lack sublayers."""

ATTENTION = Branch("self_attn", "self_attn.o_proj", ("input_layernorm",))
FFN = Branch("mlp", "mlp.down_proj", ("post_attention_layernorm",))
PRE_NORM = Architecture({"attn": ATTENTION, "ffn": FFN})
SANDWICH_NORM = Architecture(
    {
        "attn": replace(ATTENTION, norms_after=("post_attention_layernorm",)),
        "ffn": replace(FFN, norms_before=("pre_feedforward_layernorm",), norms_after=("post_feedforward_layernorm",)),
    }
)
POST_NORM = Architecture(
    {
        "attn": replace(ATTENTION, norms_before=(), norms_after=("post_attention_layernorm",)),
        "ffn": replace(FFN, norms_before=(), norms_after=("post_feedforward_layernorm",)),
    }
)

FAMILIES: dict[str, Architecture] = {
    "llama": PRE_NORM,
    "mistral": PRE_NORM,
    "ministral": PRE_NORM,
    "qwen2": PRE_NORM,
    "qwen3": PRE_NORM,
    "gemma": PRE_NORM,
    "gemma2": SANDWICH_NORM,
    "gemma3_text": SANDWICH_NORM,
    "olmo2": POST_NORM,
    "olmo3": POST_NORM,
    "phi3": PRE_NORM,
    "granite": PRE_NORM,
    "smollm3": PRE_NORM,
    "starcoder2": replace(PRE_NORM, branches={"attn": ATTENTION, "ffn": replace(FFN, projection="mlp.c_proj")}),
    "gpt2": Architecture(
        {"attn": Branch("attn", "attn.c_proj", ("ln_1",)), "ffn": Branch("mlp", "mlp.c_proj", ("ln_2",))},
        blocks="transformer.h",
    ),
    "gpt_neox": Architecture(
        {
            "attn": Branch("attention", "attention.dense", ("input_layernorm",)),
            "ffn": Branch("mlp", "mlp.dense_4h_to_h", ("post_attention_layernorm",)),
        },
        blocks="gpt_neox.layers",
        parallel=True,
    ),
}


def find_architecture(config: PreTrainedConfig) -> Architecture:
    """The row for a model's configuration; needs no weights.

    Raises:
        InputError: the family has no row.
    """
    model_type = str(config.model_type).removeprefix(PRUNED_PREFIX)
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=3, cutoff=0.5) or sorted(FAMILIES)
        raise InputError(
            f"models of type {model_type!r} are not supported; the nearest families that are: {', '.join(near)}"
        )
    architecture = FAMILIES[model_type]
    if hasattr(config, "use_parallel_residual"):
        architecture = replace(architecture, parallel=bool(config.use_parallel_residual))
    return architecture
