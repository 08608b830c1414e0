"""A stock checkpoint of a model whose blocks lack sublayers: what is absent is written with zero weights.

Every engine that runs the family runs it and gives the right answers, bit for bit in transformers, since a sublayer
whose weights are all zero adds exactly zero. It is neither smaller nor faster than a model whose blocks are whole, and
its KV cache is no smaller: the format for engines that know nothing else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthcut.export import EXPORTS, VerificationError
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.architectures import PRUNED_PREFIX, find_architecture
from depthcut.model.branches import Architecture
from depthcut.model.quantisation import require_unquantised
from depthcut.model.sublayers import MANIFEST, is_marked, require_no_emulations
from depthcut.types import InputError, Unit


@dataclass(frozen=True)
class Zeroed:
    """The stock architecture, with zeros where sublayers are absent."""

    note: ClassVar[str] = (
        "right answers in every engine, but no gain: absent sublayers are stored and computed as zeros; the formats "
        "nemotron-nas and gguf leave them out"
    )

    def check(self, config: PreTrainedConfig) -> None:
        require_no_emulations(config, "zeroed")
        require_unquantised(config, "zeroed")
        if is_marked(config) and not getattr(config, "do_layer_norm_before", True):
            raise InputError(
                "the format zeroed cannot hold this model: its norms come after the addition, so a sublayer of zeros "
                "still changes the stream; use the format hf"
            )

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        write_directory(filled(model), tokenizer, folder)

    @torch.no_grad()
    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        whole = filled(model)
        input_ids = input_ids.to(model.device)
        logits, found = (one(input_ids=input_ids, use_cache=False).logits for one in (model, whole))
        if not torch.equal(logits, found):
            difference = float((logits - found).abs().max())
            raise VerificationError(f"with zeros in place of what was removed, logits differ by up to {difference:.3g}")
        verify_directory(folder, whole, input_ids)


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the stock type with zero weights where sublayers are absent; it shares the other tensors.

    A model whose blocks are whole comes back as it is.
    """
    if not is_marked(model.config):
        return model
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    whole: PreTrainedModel = copy.deepcopy(model, tensors)
    config = whole.config
    stock = CONFIG_MAPPING[config.model_type.removeprefix(PRUNED_PREFIX)]
    absent = [Unit.parse(name) for name in getattr(config, MANIFEST)]
    for name in ("model_type", MANIFEST, "auto_map"):
        config.__dict__.pop(name, None)
    config.__class__ = stock
    whole.__class__ = MODEL_FOR_CAUSAL_LM_MAPPING[stock]  # type: ignore[assignment]
    architecture = find_architecture(config)
    templates, blocks = _stock_blocks(config, architecture, absent, model.dtype), architecture.block_list(whole)
    for unit in absent:
        branch = architecture.branches[unit.kind].of(templates[unit.layer])
        for name in branch.modules:
            setattr(blocks[unit.layer], name, _zeros(getattr(templates[unit.layer], name), model.device))
        for name in branch.settings:
            setattr(blocks[unit.layer], name, getattr(templates[unit.layer], name))
    whole.eval()
    return whole


def _stock_blocks(
    config: PreTrainedConfig, architecture: Architecture, absent: list[Unit], dtype: torch.dtype
) -> nn.ModuleList:
    """Blocks of a stock model; without storage, unless what is absent has buffers, which get values by being built."""
    with torch.device("meta"):
        blocks = architecture.block_list(AutoModelForCausalLM.from_config(config, dtype=dtype))
    branches = [(blocks[unit.layer], architecture.branches[unit.kind].of(blocks[unit.layer])) for unit in absent]
    if any(list(getattr(block, name).buffers()) for block, branch in branches for name in branch.modules):
        return architecture.block_list(AutoModelForCausalLM.from_config(config, dtype=dtype))
    return blocks


def _zeros(module: nn.Module, device: torch.device) -> nn.Module:
    """A module on a device with zero parameters."""
    module = module.to(device) if list(module.buffers()) else module.to_empty(device=device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


EXPORTS.register(
    "zeroed",
    Zeroed,
    summary="stock architecture with zeros for absent sublayers: right answers everywhere, no gain",
    source="ours",
)
