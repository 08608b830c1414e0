"""What a benchmark ran on, for people and beside its numbers: CPU, cores, memory, software, and how busy it was."""

import os
import platform
from pathlib import Path

import torch

from depthcut.evaluation.compare import software


def machine() -> dict[str, object]:
    """The machine as it is now; the load is the number of processes that wanted to run during the last minute."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        "software": software(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def told(found: dict[str, object]) -> str:
    """The machine in a sentence."""
    names = ", ".join(f"{name} {version}" for name, version in found["software"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} thread(s), {found['memory_gb']} GB, load "
        f"{found['load']}; {names}"
    )
