"""What a machine can do, for estimates: data sheets of some accelerators, or this machine, measured for a second.

Published peaks are of dense arithmetic, without sparsity. No model reaches them: that large matrices in a plain
transformers loop come to `UTILISATION` of the peak is an assumption, not a measurement.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import torch

from depthcut.model.device import chosen_device, device_label
from depthcut.registry import unknown_name
from depthcut.types import InputError

HERE = "here"
UTILISATION = 0.4
"""Share of a published peak that is counted on."""

MEASURED_SECONDS = 0.7
MEASURED_TOKENS = 1024
FREE = 0.9
"""From this share of its threads' time on that a measurement gets, a machine counts as free."""
DISK_BYTES_PER_SECOND = 1e9
"""What weights are taken to be read from files at, where they do not fit into this machine's memory."""


@dataclass(frozen=True)
class DeviceProfile:
    """One device.

    Attributes:
        flops_per_second: that are counted on, in the dtype of the model.
        memory_bytes: for weights and activations.
        memory_bytes_per_second: at which weights in its memory are read.
        host_bytes_per_second: at which weights come in that do not fit.
        is_here: whether it was measured and is not from a data sheet.
        on_accelerator: whether its memory is another than that of Python and its libraries.
    """

    name: str
    flops_per_second: float
    memory_bytes: float
    memory_bytes_per_second: float
    host_bytes_per_second: float
    is_here: bool = False
    on_accelerator: bool = True


@dataclass(frozen=True)
class _Published:
    """A data sheet; TFLOP/s of 16-bit and of float32 arithmetic, GB, GB/s of the memory and of the bus, one way."""

    half: float
    single: float
    memory: float
    bandwidth: float
    bus: float


PUBLISHED = {
    "a100": _Published(312, 19.5, 80, 2039, 32),
    "h100": _Published(989, 67, 80, 3350, 64),
    "h200": _Published(989, 67, 141, 4800, 64),
    "rtx4090": _Published(165, 82.6, 24, 1008, 32),
}
"""NVIDIA's data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and GeForce RTX 4090 (accumulating in float32)."""


def check_profile(name: str) -> None:
    """Raises InputError where there is no such profile."""
    if name != HERE and name not in PUBLISHED:
        raise InputError(unknown_name("device profile", name, [HERE, *PUBLISHED]))


def find_profile(name: str, dtype: torch.dtype, hidden_size: int, widest: int) -> DeviceProfile:
    """A device by name.

    Args:
        hidden_size, widest: of the model, for what this machine is measured with.

    Raises:
        InputError: there is no such profile.
    """
    check_profile(name)
    if name == HERE:
        return measure_here(dtype, hidden_size, widest)
    sheet = PUBLISHED[name]
    peak = sheet.single if dtype == torch.float32 else sheet.half
    return DeviceProfile(name, UTILISATION * peak * 1e12, sheet.memory * 1e9, sheet.bandwidth * 1e9, sheet.bus * 1e9)


@torch.no_grad()
def measure_here(
    dtype: torch.dtype, hidden_size: int, widest: int, *, device: str = "auto", seconds: float = MEASURED_SECONDS
) -> DeviceProfile:
    """Times the two matrix products of a feed-forward sublayer of the model's size, for the given seconds.

    What other work leaves of the machine in that time is what a run is counted on to have, and the name says so.
    """
    place = torch.device(chosen_device(device))
    width = min(widest, 2**14)
    tokens = torch.ones(MEASURED_TOKENS // 4 if place.type == "cpu" else MEASURED_TOKENS, hidden_size)
    inputs = tokens.to(place, dtype)
    up = torch.ones(hidden_size, width, device=place, dtype=dtype)
    down = torch.ones(width, hidden_size, device=place, dtype=dtype)

    def run() -> None:
        float((torch.nn.functional.silu(inputs @ up) @ down)[0, 0])

    # The first is slower than all others: it plans the kernels and touches the memory.
    run()
    began, worked, runs = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        run()
        runs += 1
    took, worked = time.perf_counter() - began, time.process_time() - worked
    measured = runs * 4 * len(inputs) * hidden_size * width / took
    on_accelerator = place.type != "cpu"
    name = device_label(place) if on_accelerator else _processors(worked / took)
    # What has no memory of its own, the CPU and MPS, has the machine's.
    properties = getattr(torch.get_device_module(place), "get_device_properties", None) if on_accelerator else None
    if properties is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        memory = properties(place).total_memory
    return DeviceProfile(
        name,
        measured,
        memory_bytes=float(memory),
        # What was timed reads its matrices from memory, too.
        memory_bytes_per_second=math.inf,
        host_bytes_per_second=DISK_BYTES_PER_SECOND,
        is_here=True,
        on_accelerator=on_accelerator,
    )


def _processors(worked: float) -> str:
    """The processors, and how busy they are.

    Args:
        worked: seconds that this process's threads worked, in a second.
    """
    threads = torch.get_num_threads()
    left = min(1.0, worked / threads)
    name = f"this machine with {threads} thread{'s' if threads > 1 else ''}"
    return name if left > FREE else f"{name}, of which other work leaves {left:.0%} free now"
