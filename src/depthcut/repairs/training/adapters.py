"""LoRA on a pruned model, over its own weights or over NF4 copies of them, and the merge into the weights.

The merge is always into the weights that the pruned model has. bitsandbytes 0.50 reorders NF4 weights in place when a
layer runs in eval mode on a CPU with AVX-512 BF16, and what reads them afterwards, a merge for one, gets noise; so
NF4 weights are never read back here, and the reordering is switched off. Adapters that were trained over NF4 weights
thereby go onto those that NF4 stood for. The loss before and after every merge must agree.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthcut.model.branches import Architecture
from depthcut.repairs import Damage, Repaired
from depthcut.repairs.training.copies import copy_to_train, whole, with_tensors
from depthcut.repairs.training.goals import Goal, NextToken
from depthcut.repairs.training.trainer import own_randomness, train
from depthcut.repairs.training.uidl import LoraSettings, Modules
from depthcut.types import InputError

ADAPTER = "default"
MERGED_LOSS = 1e-4
"""The most that merging may change the loss of a float32 model, nats per token."""
ROUNDED_LOSS = 0.05
"""The same where weights are rounded to half precision, or were NF4 while they trained: then besides twice what NF4
changed it before training."""


def train_adapters(
    damage: Damage, pruned: PreTrainedModel, goal: Goal, settings: LoraSettings, folder: Path, *, nf4: bool = False
) -> Repaired:
    """Trains LoRA on the linear maps of the kept sublayers and merges it.

    Raises:
        InputError: there are no such sublayers left.
    """
    architecture, config = damage.dense.architecture, pruned.config
    paths = linear_paths(pruned, architecture, settings.modules)
    if not paths:
        raise InputError(f"no {settings.modules} is left to put LoRA on; give other modules, for example modules=all")
    model = copy_to_train(pruned)
    with own_randomness():
        torch.manual_seed(damage.seed)
        if nf4:
            quantise_nf4(model, linear_paths(model, architecture, "all"))
        add_adapters(model, paths, settings.rank_for(config), settings.dropout)
        rounded = abs(_loss(damage, model) - _loss(damage, pruned)) if nf4 else 0.0
        curve = train(model, goal, settings, settings.rate_for(config), damage, folder)
        healed = with_tensors(pruned, merged_weights(pruned, model, paths))
        before, after = _loss(damage, model), _loss(damage, healed)
    allowed = 2 * rounded + (MERGED_LOSS if healed.dtype == torch.float32 and not nf4 else ROUNDED_LOSS)
    assert abs(after - before) <= allowed, f"merging LoRA changed the loss from {before:.4f} to {after:.4f}"
    used = {"rank": settings.rank_for(config), "learning_rate": settings.rate_for(config)}
    return Repaired(healed, curve=curve, settings=used)


def linear_paths(model: PreTrainedModel, architecture: Architecture, modules: Modules) -> list[str]:
    """Dotted paths of the linear maps in the attentions or feed-forward parts that the model has."""
    kinds = [kind for kind in architecture.branches if modules in (kind, "all")]
    return [
        ".".join(part for part in (architecture.blocks, str(index), of_branch, name) if part)
        for index, block in enumerate(architecture.block_list(model))
        for kind in kinds
        for of_branch in architecture.branches[kind].of(block).modules
        for name, module in getattr(block, of_branch).named_modules()
        # A router gives more than one value, and fused kernels read the output map of a mixer past any adapter.
        if isinstance(module, nn.Linear | Conv1D)
        and not name.endswith("router")
        and not (kind == "mixer" and name.endswith("out_proj"))
    ]


def add_adapters(model: PreTrainedModel, paths: list[str], rank: int, dropout: float) -> None:
    """Puts float32 LoRA with alpha = rank beside linear maps, in place; they alone take gradients."""
    transposed = isinstance(model.get_submodule(paths[0]), Conv1D)
    config = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=paths, fan_in_fan_out=transposed, bias="none"
    )
    inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@torch.no_grad()
def merged_weights(pruned: PreTrainedModel, model: PreTrainedModel, paths: list[str]) -> dict[str, torch.Tensor]:
    """By name, the pruned model's weights plus what LoRA adds in `model`: float32, and none of the models changes."""
    merged = {}
    for path in paths:
        layer, weight = model.get_submodule(path), pruned.get_submodule(path).weight
        assert isinstance(layer, LoraLayer) and isinstance(weight, torch.Tensor)
        down, up = whole(layer.lora_A[ADAPTER].weight), whole(layer.lora_B[ADAPTER].weight)
        change = layer.scaling[ADAPTER] * (up @ down)
        if isinstance(pruned.get_submodule(path), Conv1D):
            change = change.T
        merged[f"{path}.weight"] = weight.float() + change.to(weight.device)
    return merged


def quantise_nf4(model: PreTrainedModel, paths: list[str]) -> None:
    """Puts NF4 layers in the place of linear maps, with scales quantised again as in QLoRA (arXiv 2305.14314)."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path in paths:
        old = model.get_submodule(path)
        assert isinstance(old.weight, torch.Tensor)
        weight = old.weight.T if isinstance(old, Conv1D) else old.weight
        new = Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=model.dtype, device="meta")
        quantised = Params4bit(weight.detach().cpu().contiguous(), requires_grad=False, quant_type="nf4", module=new)
        new.weight = quantised.to(weight.device)
        new.bias = old.bias
        new.support_avx512bf16_for_cpu = False  # see the top of this file
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft goes by


@torch.no_grad()
def _loss(damage: Damage, model: PreTrainedModel) -> float:
    """Loss of the next token over a few held-out sequences, nats per token."""
    samples = damage.held_out
    goal, total, count = NextToken(samples), 0.0, 0
    for row in range(min(damage.batch_size, len(samples.input_ids))):
        targets = goal.targets(row)
        counted = targets.pop("counted")
        ids, mask = samples.input_ids[row : row + 1], samples.attention_mask[row : row + 1]
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits[
            0, counted
        ]
        total += float(goal.losses(logits.float().cpu(), token=targets["token"][counted]).double().sum())
        count += int(counted.sum())
    return total / max(1, count)
