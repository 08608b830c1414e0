"""Models that accelerate has spread over several devices: hooks, which bring inputs to where a module is, survive.

Its hooks replace the `forward` of modules. A copy's have to be the copy's, and a part that leaves its block for one on
another device has to give back its output there.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copy_modules(model: Module, memo: dict[int, Any]) -> Module:
    """A deep copy, in which methods that were replaced on the model alone are the class's again, where no hook did it.

    accelerate replaces `to` and `cuda` by functions that hold the model they were made for: those of a copy would move
    the model that was copied.

    Args:
        memo: what is shared with the model, by id.
    """
    copied = copy.deepcopy(model, memo)
    for name in [name for name, value in vars(copied).items() if inspect.isfunction(value)]:
        if hasattr(nn.Module, name):
            delattr(copied, name)
    return copied


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate has put hooks on a model, which bring what it is given to where it begins."""
    return hasattr(model, "_hf_hook")


def bring(stream: torch.Tensor, block: nn.Module) -> torch.Tensor:
    """A stream where a block of a model on several devices is; as it is where no hook says so."""
    there = getattr(getattr(block, "_hf_hook", None), "execution_device", None)
    return stream if there is None else stream.to(there)


def join(module: Any, block: nn.Module) -> None:
    """Has a part that comes from a block on another device give back its output where its input was.

    Args:
        module: of which nothing changes where it is no module, has no hook, or is where the block is.
    """
    hook = getattr(module, "_hf_hook", None)
    own = getattr(hook, "execution_device", None)
    there = getattr(getattr(block, "_hf_hook", None), "execution_device", None)
    if hook is None or own is None or there is None or torch.device(own) == torch.device(there):
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(module, AlignDevicesHook(own, io_same_device=True, skip_keys=hook.skip_keys))
