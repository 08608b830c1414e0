"""Files of weights in the memory of the process: mapped, read when they are looked at, and given back at will."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import torch
from safetensors import safe_open


def map_file(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, without reading them.

    Raises:
        OSError: the tensors were copied into memory, where no page can be given back.
    """
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if sys.platform == "linux":
        spans = spans_of(file)
        for name, tensor in tensors.items():
            begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            if tensor.nbytes and not any(first <= begin and end <= last for first, last in spans):
                raise OSError(f"the tensor {name} of {file} was not mapped")
    return tensors


def spans_of(file: Path) -> list[tuple[int, int]]:
    """The addresses at which this process has mapped a file."""
    path = str(file.resolve())
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(path):
            begin, _, end = line.split(maxsplit=1)[0].partition("-")
            spans.append((int(begin, 16), int(end, 16)))
    return spans


def drop_pages(mapped: torch.Tensor) -> None:
    """Takes the pages of a mapped tensor out of this process. Of one in memory it would destroy the values."""
    if sys.platform != "linux":
        return  # Other systems take them when memory gets short.
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
