"""How a run's memory is shared out between weights and what is kept of activations."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from depthcut.types import InputError

KEPT_BY_DEFAULT = 2**30
"""Bytes of streams and dense probabilities that a search keeps where no budget is given."""

LEAST = 2**27
"""Bytes without which nothing runs, beside what the process takes before it reads a weight."""

FILLED = 0.8
"""Share of the free memory that weights may take before they are paged unasked."""


@dataclass(frozen=True)
class Room:
    """Bytes that a run may take.

    Attributes:
        kept: for streams and dense probabilities.
        weights: for weights, None where all may stay in memory.
        solving: for what a repair solves at a time, None where that has no bound.
        abreast: for streams that are run side by side, so that weights come in once for all of them.
    """

    kept: int
    weights: int | None
    solving: int | None = None
    abreast: int = 0


def room_for_weights(budget: int | None) -> float:
    """Bytes that weights may take before they are paged, of a budget or of what is free."""
    return FILLED * _free_bytes() if budget is None else budget / 2


def share_out(budget: int | None, weight_bytes: int) -> Room:
    """How much memory a run may use, from its budget or from what is free.

    Args:
        budget: bytes for the whole process; where left out as much as is free.
        weight_bytes: of all weights in the precision that they are loaded in.

    Raises:
        InputError: less than what the process takes already, and a little to work with.
    """
    if budget is None:
        free = _free_bytes()
        if weight_bytes <= FILLED * free:
            return Room(KEPT_BY_DEFAULT, None)
        kept = min(KEPT_BY_DEFAULT, free // 4)
        return Room(kept, free // 4, free // 2, kept // 2)
    usable = budget - resident_bytes()
    if usable < LEAST:
        least = -(-(resident_bytes() + LEAST) // 2**20)
        raise InputError(
            f"a memory budget of {budget // 2**20} MiB is too small: before any weight is read "
            f"{resident_bytes() // 2**20} MiB are taken; give at least {least}MiB"
        )
    if weight_bytes <= usable // 2:
        return Room((usable - weight_bytes) // 2, None, (usable - weight_bytes) // 2)
    # What is neither kept nor held is for what a layer and the vocabulary projection compute with. A repair solves a
    # map while nothing else is computed.
    return Room(usable // 4, usable // 4, usable // 2, usable // 8)


def share_out_device(room: float, weight_bytes: int, solving: int | None) -> Room:
    """How much of an accelerator's memory a run may use.

    Args:
        room: bytes, a budget or what is free.
        weight_bytes: of all weights in the precision that they are loaded in.
        solving: bytes of the host for what a repair solves at a time, None where that has no bound.
    """
    if weight_bytes <= FILLED * room:
        return Room(int(min(KEPT_BY_DEFAULT, (room - weight_bytes) / 2)), None, solving)
    # An eighth is for what a layer and the vocabulary projection compute with.
    kept, eighth = min(KEPT_BY_DEFAULT, int(room / 4)), int(room / 8)
    return Room(kept, int(room) - kept - 2 * eighth, solving, eighth)


def resident_bytes() -> int:
    """What this process takes of memory now."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _free_bytes() -> int:
    """What this process may still take: free memory, or what its control group leaves it."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        entries = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(entries["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdigit():
        free = min(free, max(0, int(most) - int(used.read_text(encoding="ascii"))))
    return free
