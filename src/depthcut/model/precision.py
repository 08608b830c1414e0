"""The precision that a model is computed in, and the one that it is written in: two matters.

A checkpoint in bfloat16 is computed in float32 where the processor has no instructions for bfloat16, which is several
times faster there, and written in bfloat16 again. So that what is measured is what is written, every weight in memory
is one that the written precision holds: weights are rounded when they are loaded, and when a repair makes them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from depthcut.model.islands import is_island, islands, stored_value
from depthcut.model.paging import pager_of

MEASURED_WIDTH = 512
SLOWER = 2.0
"""How many times slower than in float32 products in 16 bits are where float32 is taken; 5 to 8 times was seen."""

WRITTEN = "_written_dtype"


@functools.cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices in a precision much slower than in float32; measured, in some 50 ms.

    Measuring sees what a list of instructions does not: a library that was told to leave some alone, or lacks kernels.
    """
    return _product_seconds(dtype) > SLOWER * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of a product of two square matrices."""
    matrix = torch.ones(MEASURED_WIDTH, MEASURED_WIDTH, dtype=dtype)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - began)
    return min(taken)


def computing_dtype(stored: torch.dtype, device: str, num_parameters: int, room_bytes: float) -> torch.dtype:
    """What `auto` computes in: the stored precision, or float32 on a CPU that is much better at it.

    Args:
        room_bytes: that weights may take.
    """
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and stored.itemsize == 2 and num_parameters * 4 <= room_bytes and is_slow(stored):
        return torch.float32
    return stored


def write_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Sets the dtype that a model will be written in and rounds its weights to it. A paged model is left alone: its
    weights are written as they are stored.
    """
    if pager_of(model) is None:
        setattr(model, WRITTEN, dtype)
        round_weights(model, ())


@torch.no_grad()
def round_weights(model: nn.Module, but: Collection[nn.Parameter]) -> None:
    """Rounds the weights of a model to what it will be written in; they keep the precision that is computed in.

    Args:
        but: parameters that are left, such as those that another model shares.
    """
    dtype = getattr(model, WRITTEN, None)
    if dtype is None:
        return
    left = set(map(id, but))
    for parameter in model.parameters():
        if id(parameter) in left or is_island(parameter):
            continue
        if parameter.is_floating_point() and parameter.itemsize > dtype.itemsize:
            parameter.data = parameter.to(dtype).to(parameter.dtype)


@contextmanager
def in_written_dtype(model: nn.Module) -> Iterator[None]:
    """While open, a model's parameters are of the precision that it is written in.

    Islands are as they were stored, and what the precision cannot hold stays as it is.
    """
    dtype = getattr(model, WRITTEN, None)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for tensor, stored in list(islands(model)):
            before.append((tensor, tensor.data))
            tensor.data = stored
        for parameter in model.parameters() if dtype is not None else ():
            if parameter.is_floating_point() and parameter.dtype != dtype and stored_value(parameter) is None:
                data = parameter.data
                narrow = data.to(dtype)
                if torch.equal(narrow.to(data.dtype), data):
                    before.append((parameter, data))
                    parameter.data = narrow
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
