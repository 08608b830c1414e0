"""Copies of a pruned model: one to train, which leaves the model's own tensors alone, and one with what changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from depthcut.model.placement import copy_modules


def copy_to_train(model: PreTrainedModel, names: Collection[str] = ()) -> PreTrainedModel:
    """A copy whose named parameters are float32 clones that take gradients, and whose others are frozen.

    Frozen parameters share their memory with the model's, but are parameters of their own, so that neither the flag
    nor a move to a device reaches the model. Float32, because updates of half-precision weights round to nothing.
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        data = parameter.detach()
        trains = name in names
        memo[id(parameter)] = nn.Parameter(data.float().clone() if trains else data, requires_grad=trains)
    return copy_modules(model, memo)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What takes gradients, by name; tied parameters once. What is divided among ranks is put together: all have to
    ask.
    """
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts that other ranks hold, where FSDP has divided it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def with_tensors(model: PreTrainedModel, changed: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A copy with other values in the named parameters, in their own type and place; all else is shared."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    parameters = dict(model.named_parameters())
    for name, values in changed.items():
        old = parameters[name]
        memo[id(old)] = nn.Parameter(values.detach().to(old.device, old.dtype), requires_grad=old.requires_grad)
    changed_model = copy_modules(model, memo)
    changed_model.eval()
    return changed_model
