"""Models whose weights do not fit into memory: they stay in files, and each layer is read when it runs.

Every parameter is a view of its mapped file, which costs no memory until it is read, so that surgery, export and repair
see the tensors of an ordinary model. When a part of a block runs, its weights are copied into memory first, and stay
until others need the room: what it computes is bit for bit what it computes in memory. Weights that transformers
rearranges while loading (experts that it stacks) and those of a GGUF, which have to be dequantised, are written to a
scratch file once.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import tempfile
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

SCRATCH_PREFIX = "depthcut-"

PART_BYTES = 2**24
"""Bytes of a weight that are read at a time."""

LEAST_SHARD = 2**26
"""Bytes of the smallest file that a paged model is written in."""

_owners: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The pager of every paged parameter."""


class Pager:
    """Brings the weights of layers into memory as they run, and lets the oldest go.

    Args:
        capacity: bytes of weights to hold; the layer that runs is held whatever its size.
        activations: bytes that streams may take which are run side by side, so that weights come in once for all.

    Attributes:
        bytes_read: what was brought into memory so far.
    """

    def __init__(self, capacity: int, activations: int = 0) -> None:
        self.capacity, self.activations = capacity, activations
        self.bytes_read = 0
        self._scratch = tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, ignore_cleanup_errors=True)
        self._numbers = itertools.count()
        self._mapped: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._resident: OrderedDict[int, weakref.ref[nn.Parameter]] = OrderedDict()
        self._held = 0

    @property
    def scratch(self) -> Path:
        """The folder of what had to be written; it goes with the pager."""
        return Path(self._scratch.name)

    def __deepcopy__(self, _: dict[int, Any]) -> Pager:
        # A pruned model is a copy of the modules, hooks included, that shares the dense one's parameters.
        return self

    def adopt(self, model: PreTrainedModel, mapped: Mapping[str, torch.Tensor], blocks: Iterable[nn.Module]) -> None:
        """Gives a model without weights its parameters, each a tensor that lies in a mapped file.

        Of a block each part comes in whole as it is run, since some read their layers' weights without running them.
        """
        inside = {module for block in blocks for module in block.modules()}
        for name, module in model.named_modules():
            for own in list(module._parameters):
                full = f"{name}.{own}" if name else own
                if full in mapped:
                    module._parameters[own] = self.page(mapped[full])
            # Of an embedding only the rows of the tokens are read.
            if module._parameters and module not in inside and not isinstance(module, nn.Embedding):
                module.register_forward_pre_hook(self._before)
        for block in blocks:
            for part in block.children():
                part.register_forward_pre_hook(self._before)
        model.tie_weights()

    def make_hold(self, num_bytes: int) -> None:
        """Raises the capacity to what has to be held at once."""
        self.capacity = max(self.capacity, num_bytes)

    def page(self, mapped: torch.Tensor) -> nn.Parameter:
        """A parameter that stays in its mapped file while nothing runs it."""
        parameter = nn.Parameter(mapped, requires_grad=False)
        self._mapped[parameter] = mapped
        _owners[parameter] = self
        return parameter

    def store(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values in the scratch folder, mapped."""
        file = self.scratch / f"{next(self._numbers)}.safetensors"
        save_file({"tensor": tensor.contiguous()}, file)
        mapped = map_file(file)["tensor"]
        # What is mapped stays readable.
        file.unlink()
        return mapped

    def as_dtype(self, mapped: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A mapped tensor in a dtype; one that has another is written to the scratch folder."""
        if mapped.dtype == dtype or not mapped.is_floating_point():
            return mapped
        converted = self.store(mapped.to(dtype))
        _drop_pages(mapped)
        return converted

    def _before(self, module: nn.Module, _: Any) -> None:
        for parameter in module.parameters():
            if parameter in self._mapped:
                self._bring(parameter)

    def _bring(self, parameter: nn.Parameter) -> None:
        key = id(parameter)
        known = self._resident.get(key)
        if known is not None and known() is parameter:
            self._resident.move_to_end(key)
            return
        mapped = self._mapped[parameter]
        self._make_room(mapped.nbytes)
        copied = torch.empty_like(mapped)
        for there, part in zip(_split(copied), self.parts(parameter), strict=True):
            there.copy_(part)
        parameter.data = copied
        self._resident[key] = weakref.ref(parameter, lambda _: self._forget(key))
        self._held += mapped.nbytes
        self.bytes_read += mapped.nbytes

    def _make_room(self, num_bytes: int) -> None:
        while self._resident and self._held + num_bytes > self.capacity:
            self._let_go(next(iter(self._resident)))

    def _let_go(self, key: int) -> None:
        parameter = self._resident.pop(key)()
        if parameter is not None:
            self._held -= parameter.nbytes
            parameter.data = self._mapped[parameter]

    def _forget(self, key: int) -> None:
        """Releases the memory that was counted for a deleted parameter."""
        self._resident.pop(key, None)
        self._held = sum(p.nbytes for known in self._resident.values() if (p := known()) is not None)

    def parts(self, parameter: nn.Parameter) -> Iterator[torch.Tensor]:
        """A weight from its file a piece at a time, of which one is in memory."""
        for part in _split(self._mapped[parameter]):
            yield part
            _drop_pages(part)

    def let_all_go(self) -> None:
        """Drops all weights, and the pages of their files, from memory."""
        for key in list(self._resident):
            self._let_go(key)
        self.drop_pages(*self._mapped.values())  # type: ignore[no-untyped-call]

    def drop_pages(self, *tensors: torch.Tensor) -> None:
        """Takes the pages of mapped weights out of this process; they are read again when they are asked for.

        Args:
            tensors: parameters or views of whole ones; what is not mapped here stays as it is.
        """
        spans = {mapped.data_ptr(): mapped.nbytes for mapped in self._mapped.values()}  # type: ignore[no-untyped-call]
        for tensor in tensors:
            if spans.get(tensor.data_ptr()) == tensor.nbytes:
                _drop_pages(tensor)


def pager_of(model: nn.Module) -> Pager | None:
    """The pager of a model; None where its weights are in memory."""
    return next((_owners[parameter] for parameter in model.parameters() if parameter in _owners), None)


def parts(parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """The values of a parameter piece by piece, flat; of a paged one with one piece in memory."""
    pager: Pager | None = _owners.get(parameter)  # type: ignore[no-untyped-call]
    return iter(_split(parameter.data)) if pager is None else pager.parts(parameter)


def _split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.view(-1), PART_BYTES // tensor.itemsize)


def like(old: torch.Tensor, new: torch.Tensor) -> nn.Parameter:
    """New values for a parameter, kept where the old ones are: in memory or in a file."""
    pager: Pager | None = _owners.get(old)  # type: ignore[no-untyped-call]
    return nn.Parameter(new.contiguous(), requires_grad=False) if pager is None else pager.page(pager.store(new))


class _Departing(dict[str, torch.Tensor]):
    """Tensors that are taken out to be written, one shard of a model after the other; written ones leave memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], pager: Pager) -> None:
        super().__init__(tensors)
        self._pager, self._since = pager, 0
        self._taken: list[torch.Tensor] = []

    def pop(self, name: str, *default: Any) -> Any:
        if self._since > self._pager.capacity:
            # All that were taken: those of the shard at hand come back when it is written, and go the next time.
            self._pager.drop_pages(*self._taken)
            self._since = 0
        tensor = super().pop(name, *default)
        self._taken.append(tensor)
        self._since += tensor.nbytes
        return tensor


@contextmanager
def in_shards(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """While open, a paged model can be saved without being in memory at once.

    Yields:
        Arguments for `save_pretrained`.
    """
    pager = pager_of(model)
    if pager is None:
        yield {}
        return
    pager.let_all_go()
    # So marked, transformers undoes shard by shard what it rearranged while loading; its warning is of no danger here.
    model.hf_device_map = {"": "disk"}  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            departing = _Departing(model.state_dict(), pager)
            yield {"state_dict": departing, "max_shard_size": max(pager.capacity, LEAST_SHARD)}
    finally:
        del model.hf_device_map
        pager.let_all_go()


def map_file(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, without reading them.

    Raises:
        OSError: the tensors were copied into memory, where no page can be given back.
    """
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if sys.platform == "linux":
        spans = _spans_of(file)
        for name, tensor in tensors.items():
            begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            if tensor.nbytes and not any(first <= begin and end <= last for first, last in spans):
                raise OSError(f"the tensor {name} of {file} was not mapped")
    return tensors


def _spans_of(file: Path) -> list[tuple[int, int]]:
    """The addresses at which this process has mapped a file."""
    path = str(file.resolve())
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(path):
            begin, _, end = line.split(maxsplit=1)[0].partition("-")
            spans.append((int(begin, 16), int(end, 16)))
    return spans


def take_weights(model: PreTrainedModel, pager: Pager, dtype: torch.dtype, blocks: Sequence[nn.Module]) -> None:
    """Turns a model that was loaded with all its weights left on disk into one that a pager serves.

    Args:
        dtype: of the weights; those that are stored in another are written anew.
    """
    index: dict[str, Any] = {}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            weights = getattr(part, "weights_map", None)
            index |= getattr(getattr(weights, "dataset", weights), "index", {})
    remove_hook_from_submodules(model)
    del model.hf_device_map
    by_file: dict[str, dict[str, str]] = {}
    for name, entry in index.items():
        by_file.setdefault(entry["safetensors_file"], {})[name] = entry["weight_name"]
    mapped: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        tensors = map_file(Path(file))
        mapped |= {name: pager.as_dtype(tensors[stored], dtype) for name, stored in names.items()}
    pager.adopt(model, mapped, blocks)


def _drop_pages(mapped: torch.Tensor) -> None:
    """Takes the pages of a mapped tensor out of this process. Of one in memory it would destroy the values."""
    if sys.platform != "linux":
        return  # Other systems take them when memory gets short.
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
