"""What a run may take of the memory of the host, and of the accelerator that it runs on."""

from __future__ import annotations

import torch

from depthcut.model.device import chosen_device, free_bytes
from depthcut.process.memory import Room, share_out, share_out_device
from depthcut.run.recipe import Recipe


def find_room(recipe: Recipe, weight_bytes: int, device_bytes: float | None = None) -> Room:
    """The room of a run: where weights, streams and dense probabilities lie, and how much of them there is at a time.

    Args:
        weight_bytes: of all weights in the precision that they are loaded in.
        device_bytes: of an accelerator other than the recipe's; by default what is free on the recipe's device.

    Raises:
        InputError: a budget is no amount, or too small.
    """
    device = torch.device(chosen_device(recipe.device))
    if device_bytes is None and device.type == "cpu":
        return share_out(recipe.memory_bytes, weight_bytes)
    free = free_bytes(device) if device_bytes is None else device_bytes
    of_host = None if recipe.memory_bytes is None else share_out(recipe.memory_bytes, 0).solving
    return share_out_device(min(free, recipe.device_bytes or free), weight_bytes, of_host)
