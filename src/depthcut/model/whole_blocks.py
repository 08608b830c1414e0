"""Finds how the blocks of a model pass the stream on, for families whose blocks are only removed whole.

A block that maps a stream to a stream can be skipped, whatever it does; then the whole block is the unit. What has to
be known of it is seen when the model itself runs: where the list of blocks is, that each block is given what the one
before gave, and what goes from block to block beside the stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import KVSharingDict

from depthcut.model.block_call import bind
from depthcut.model.branches import WHOLE, Architecture
from depthcut.model.watch import first

LENGTH = 7
SEQUENCES = 2


class UnfitError(Exception):
    """Why a type does not fit: a clause."""


def block_list(model: PreTrainedModel, num_blocks: int) -> tuple[str, nn.ModuleList]:
    """The outermost list of as many modules as there are blocks, and its dotted path."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    if not found:
        raise UnfitError("it has no list of as many blocks as its configuration says")
    return min(found, key=lambda entry: entry[0].count("."))


@torch.no_grad()
def find_whole(model: PreTrainedModel, num_blocks: int) -> Architecture:
    """The row of a family of whole blocks, inferred from one forward pass; `prove` has to confirm it.

    Args:
        model: in eval mode, of at least two blocks.

    Raises:
        UnfitError: blocks are not given what the one before gave.
    """
    path, blocks = block_list(model, num_blocks)
    given, outputs = _watch(model, blocks)
    streams = [stream for stream, _ in given]
    for output, stream in zip(outputs, streams[1:], strict=False):
        after = first(output)
        if not (isinstance(after, torch.Tensor) and after.shape == stream.shape and torch.equal(after, stream)):
            raise UnfitError("its blocks are not given what the one before gave")
    if streams[0].dim() not in (3, 4):
        raise UnfitError(f"its blocks are given a tensor of {streams[0].dim()} dimensions")
    count = len(outputs[0]) if isinstance(outputs[0], tuple | list) else 1
    carried = _carried(outputs, given, count)
    values = [value for _, others in given for value in others.values()]
    beside = any(isinstance(value, KVSharingDict) for value in values)
    beside |= any(isinstance(others[name], torch.Tensor) for _, others in given[1:] for name in carried)
    return Architecture(
        {"block": WHOLE},
        blocks=path,
        block_outputs=count,
        carried=carried,
        streams_first=streams[0].dim() == 4 and streams[0].shape[:2] != (SEQUENCES, LENGTH),
        last_entry=0 if beside else None,
    )


def _watch(
    model: PreTrainedModel, blocks: nn.ModuleList
) -> tuple[list[tuple[torch.Tensor, dict[str, Any]]], list[Any]]:
    """What each block is given, the stream and by name the rest; and what each gives."""
    given: list[tuple[torch.Tensor, dict[str, Any]]] = []
    outputs: list[Any] = []

    def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given.append(bind(block, args, kwargs))
        outputs.append(output)

    handles = [block.register_forward_hook(keep, with_kwargs=True) for block in blocks]
    try:
        model(input_ids=torch.arange(SEQUENCES * LENGTH).view(SEQUENCES, LENGTH) % 8 + 3, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(given) != len(blocks):
        raise UnfitError(f"its {len(blocks)} blocks are called {len(given)} times in a pass")
    return given, outputs


def _carried(outputs: list[Any], given: list[tuple[torch.Tensor, dict[str, Any]]], count: int) -> tuple[str, ...]:
    """Names of the parameters by which a block's outputs after the stream reach the next block."""
    names: list[str] = []
    for place in range(1, count):
        value = outputs[0][place]
        found = [name for name, other in given[1][1].items() if isinstance(value, torch.Tensor) and other is value]
        if found:
            names.append(found[0])
        elif value is not None and names:
            raise UnfitError("its blocks hand on what none of them takes")
    return tuple(names)
