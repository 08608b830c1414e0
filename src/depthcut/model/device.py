"""The accelerator that a model runs on, asked of torch so that any it has will do: CUDA, XPU, MPS, NPU and others."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections.abc import Iterator

import torch

from depthcut.types import InputError


def default_device() -> str:
    """The first accelerator that torch can use here, else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None or not torch.accelerator.is_available() else accelerator.type


def chosen_device(name: str) -> str:
    """The device that `auto` stands for, else the one that is named."""
    return default_device() if name == "auto" else name


def check_device(name: str) -> None:
    """Raises InputError where there is no such device."""
    if name == "auto":
        return
    try:
        if torch.device(name).type == "meta":
            raise InputError("the device 'meta' holds no numbers; use auto, cpu, cuda, cuda:1 or another of torch")
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"there is no device {name!r} here; use auto, cpu, cuda, cuda:1 or another of torch"
        ) from error


def device_label(device: torch.device) -> str:
    """The device as a person would call it."""
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if named is None else str(named(device))


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64; Apple's does not."""
    try:
        one = torch.ones(1, 1, dtype=torch.float64, device=device)
        return bool(one @ one == 1)
    except (RuntimeError, TypeError):
        return False


def widest_type(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32."""
    return torch.float64 if has_float64(device) else torch.float32


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def free_bytes(device: torch.device) -> float:
    """What a device's memory has left; infinite where the device does not say."""
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return float(module.mem_get_info(device)[0])
    if hasattr(module, "recommended_max_memory"):
        return float(module.recommended_max_memory() - module.driver_allocated_memory())
    return math.inf


def free_cached_memory(device: torch.device) -> None:
    """Gives back what torch keeps of a device's memory for tensors to come."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


@contextlib.contextmanager
def own_seed() -> Iterator[None]:
    """Restores the random numbers of the CPU and of all accelerators on exit, also after an exception."""
    accelerator = torch.accelerator.current_accelerator()
    # The generator of MPS cannot be asked for its state by device.
    if accelerator is None or accelerator.type == "mps":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.random.fork_rng(devices=range(torch.accelerator.device_count()), device_type=accelerator.type):
        yield
