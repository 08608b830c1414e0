"""A stand-in accelerator for tests: torch's `PrivateUse1` device as `standin`, two of them, over host memory.

CPU kernels compute, so numbers equal the CPU's. A tensor of another device in an operation is refused as on a GPU, each
device has a limit past which `torch.OutOfMemoryError` comes, and counts what is used, the peak, and synchronisations.
Every process that has this folder on its PYTHONPATH gets the device with `import torch`, by torch's entry point for
backends. The first one compiles (half a minute of one core, needs g++); what it made is kept by source and by torch.
"""

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import torch

DEVICES = 2
NAME = "standin_extension"
SOURCE = Path(__file__).with_name("standin.cpp")


def compiled() -> Path:
    """The extension, compiled once for this source, this torch and this Python."""
    made_for = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthcut-tests"
    cache.mkdir(parents=True, exist_ok=True)
    library = cache / f"{NAME}-{made_for}.so"
    with (cache / "lock").open("w") as lock:
        # Processes that begin together wait for the one that compiles.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            _compile(library)
    return library


def _compile(library: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    unfinished = library.with_suffix(".unfinished")
    includes = [*include_paths(), sysconfig.get_path("include")]
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", "-O1", "-w", str(SOURCE), "-o", str(unfinished)]
        + [f"-DTORCH_EXTENSION_NAME={NAME}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
        + [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        + [word for path in includes for word in ("-isystem", path)]
        + [f"-L{path}" for path in library_paths()]
        + ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"],
        check=True,
    )
    unfinished.replace(library)


def register() -> None:
    """Makes the device known to torch; called by torch itself."""
    torch.utils.rename_privateuse1_backend("standin")
    spec = importlib.util.spec_from_file_location(NAME, compiled())
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
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
        mem_get_info=lambda device=None: extension.free_and_total(index(device)),
        max_memory_allocated=lambda device=None: extension.peak(index(device)),
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
    )
    torch._register_device_module("standin", module)
    torch.utils.generate_methods_for_privateuse1_backend()
