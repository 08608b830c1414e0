"""A stand-in accelerator for tests: torch's `PrivateUse1` device as `standin`, two of them, over host memory.

CPU kernels compute, so numbers equal the CPU's. A tensor of another device in an operation is refused as on a GPU, each
device has a limit past which `torch.OutOfMemoryError` comes, and counts what is used, the peak, and synchronisations.
Every process that has this folder on its PYTHONPATH gets the device with `import torch`, by torch's entry point for
backends. The first one compiles (half a minute of one core, kept in torch's folder of extensions); needs g++, ninja.
"""

import types
from pathlib import Path

import torch

DEVICES = 2


def register() -> None:
    """Makes the device known to torch; called by torch itself."""
    from torch.utils.cpp_extension import load

    torch.utils.rename_privateuse1_backend("standin")
    extension = load("standin_extension", [str(Path(__file__).with_name("standin.cpp"))], extra_cflags=["-O1", "-w"])
    extension.register_hooks()

    def index(device: object = None) -> int:
        if isinstance(device, int):
            return device
        return (torch.device(device).index if device is not None else None) or 0  # type: ignore[call-overload]

    module = types.ModuleType("torch.standin")
    vars(module).update(
        extension=extension,
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: DEVICES,
        current_device=extension.current,
        set_device=lambda device: extension.set_current(index(device)),
        manual_seed=lambda seed: None,
        manual_seed_all=lambda seed: None,
        # CPU kernels draw from the CPU's generator.
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        memory_allocated=lambda device=None: extension.used(index(device)),
        max_memory_allocated=lambda device=None: extension.peak(index(device)),
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
    )
    torch._register_device_module("standin", module)
    torch.utils.generate_methods_for_privateuse1_backend()
