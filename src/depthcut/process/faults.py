"""Recognises that memory or disk has run out, from the different errors that libraries raise."""

from __future__ import annotations

import errno

import torch
from safetensors import SafetensorError

from depthcut.types import ResourceError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAFETENSORS_NO_SPACE = tuple(f"os error {number})" for number in sorted(NO_SPACE))
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of the CPU or of a GPU; the CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR)


def is_out_of_space(error: BaseException) -> bool:
    """Whether a file system or a quota is full."""
    if isinstance(error, SafetensorError):
        return any(words in str(error) for words in _SAFETENSORS_NO_SPACE)
    return isinstance(error, OSError) and error.errno in NO_SPACE


def resource_error(error: BaseException, how_to_go_on: str = "give the command again") -> ResourceError | None:
    """The sentence for the user where an error means that memory or disk ran out; None for any other error.

    Args:
        how_to_go_on: what to do once there is more of it.
    """
    if is_out_of_space(error):
        where = getattr(error, "filename", None)
        place = f"for {where}" if where else "on the disk"
        return ResourceError(f"there is no space left {place}; make room, then {how_to_go_on}")
    if is_out_of_memory(error):
        return ResourceError(
            "there is no memory left; free some or give a smaller --memory-budget, --batch-size or --dtype bfloat16, "
            f"or {how_to_go_on}"
        )
    return None
