"""Models whose weights do not fit into memory: they stay in files, and each layer is read when it runs.

Every parameter is a view of its mapped file, which costs no memory until it is read, so that surgery, export and repair
see the tensors of an ordinary model. While a part of a block runs, copies stand in its place: in memory, or on the
accelerator that computes. As many blocks as fit stay there, always the same ones, since a search goes through all of
them again and again; the others come in as they run, on an accelerator one block ahead (`transfer.py`). What a layer
computes is bit for bit what it computes in memory. Weights that transformers rearranges while loading (experts that it
stacks) and those of a GGUF, which have to be dequantised, are written to a scratch file once.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors.torch import save_file
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from depthcut.model.device import free_cached_memory
from depthcut.model.mapped import drop_pages, map_file
from depthcut.model.transfer import Transfer, split
from depthcut.process.faults import is_out_of_memory
from depthcut.types import InputError

SCRATCH_PREFIX = "depthcut-"

LEAST_SHARD = 2**26
"""Bytes of the smallest file that a paged model is written in."""

_owners: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The pager of every paged parameter."""


@dataclass
class _Copy:
    """A weight where it is computed with.

    Attributes:
        source: the parameter that lies in a file.
        coming: ends when the copy is there; None where it is.
        stays: whether it is one of those that never leave.
    """

    source: weakref.ref[nn.Parameter]
    copy: nn.Parameter
    coming: Future[torch.Event] | None
    stays: bool


class Pager:
    """Brings the weights of layers in as they run: as many blocks as fit stay, and of the others those that ran last.

    Args:
        capacity: bytes of weights to hold; on the CPU the layer that runs is held whatever its size.
        activations: bytes that streams may take which are run side by side, so that weights come in once for all.
        device: that computes. On an accelerator what lies outside of the blocks stays, the embedding and the head too.

    Attributes:
        bytes_read: what was brought in so far.
    """

    def __init__(self, capacity: int, activations: int = 0, device: torch.device | str = "cpu") -> None:
        self.capacity, self.activations = capacity, activations
        self.device = torch.device(device)
        self.bytes_read = 0
        self._transfer = Transfer.to(self.device)
        self._scratch = tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, ignore_cleanup_errors=True)
        self._numbers = itertools.count()
        self._mapped: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._staying: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._copies: OrderedDict[int, _Copy] = OrderedDict()
        self._replaced: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        self._room = capacity

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

        Raises:
            InputError: the accelerator does not hold what has to be there at a time.
        """
        for name, module in model.named_modules():
            for own in list(module._parameters):
                full = f"{name}.{own}" if name else own
                if full in mapped:
                    module._parameters[own] = self.page(mapped[full])
        model.tie_weights()
        of_blocks = [list(_called(block)) for block in blocks]
        inside = {module for parts in of_blocks for part in parts for module in part.modules()}
        # Of an embedding only the rows of the tokens are read.
        outside = [
            module
            for module in model.modules()
            if module._parameters and module not in inside and not isinstance(module, nn.Embedding)
        ]
        if self.device.type == "cpu":
            groups = [*of_blocks, outside]
            self._share_out(groups, 0, windows=1)
        else:
            groups = of_blocks
            self._share_out(groups, self._settle(model, inside), windows=2)
        for part in itertools.chain(*groups):
            part.register_forward_pre_hook(self._before)
            # Also after an error, such as one of memory.
            part.register_forward_hook(self._after, always_call=True)

    def _settle(self, model: PreTrainedModel, inside: set[nn.Module]) -> int:
        """Moves what is no part of a block to the accelerator; returns its bytes."""
        known: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
            if module in inside:
                continue
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in known:
                        known[id(parameter)] = nn.Parameter(parameter.to(self.device), requires_grad=False)
                    module._parameters[name] = known[id(parameter)]
        return sum(parameter.nbytes for parameter in known.values())

    def _share_out(self, groups: Sequence[Sequence[nn.Module]], settled: int, *, windows: int) -> None:
        """Chooses which weights stay, from the last ones on, since a pass may begin behind the first ones.

        Args:
            groups: what is run together.
            settled: bytes that are there for good.
            windows: how many of the largest group have room beside those that stay.
        """
        sizes = [{id(p): p for part in parts for p in part.parameters()} for parts in groups]
        largest = max((sum(p.nbytes for p in of_group.values()) for of_group in sizes), default=0)
        needed = settled + windows * largest
        if self.device.type != "cpu" and needed > self.capacity:
            raise InputError(
                f"{needed / 1e9:.3g} GB of weights have to be on {self.device} at a time (what is no block, and two "
                f"blocks), and {self.capacity / 1e9:.3g} GB are theirs; give a larger --device-memory, or --device cpu"
            )
        self.capacity = max(self.capacity, needed)
        left, self._room = self.capacity - needed, windows * largest
        for of_group in reversed(sizes):
            new = [p for p in of_group.values() if p not in self._staying]
            left -= sum(p.nbytes for p in new)
            if left < 0:
                break
            for parameter in new:
                self._staying[parameter] = True

    def page(self, mapped: torch.Tensor) -> nn.Parameter:
        """A parameter that stays in its mapped file while nothing runs it."""
        parameter = nn.Parameter(mapped, requires_grad=False)
        self._mapped[parameter] = mapped
        _owners[parameter] = self
        return parameter

    def store(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values in the scratch folder, mapped."""
        file = self.scratch / f"{next(self._numbers)}.safetensors"
        save_file({"tensor": tensor.cpu().contiguous()}, file)
        mapped = map_file(file)["tensor"]
        # What is mapped stays readable.
        file.unlink()
        return mapped

    def as_dtype(self, mapped: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A mapped tensor in a dtype; one that has another is written to the scratch folder."""
        if mapped.dtype == dtype or not mapped.is_floating_point():
            return mapped
        converted = self.store(mapped.to(dtype))
        drop_pages(mapped)
        return converted

    def expect(self, now: Iterable[nn.Module], following: Iterable[nn.Module]) -> None:
        """Has an accelerator begin to bring in what follows while it computes with what runs now.

        Args:
            now: parts of blocks, of which nothing leaves for what follows.
            following: parts that run next.
        """
        if self._transfer is None:
            return
        for parts, brings in ((now, self._bring), (following, self._begin)):
            for _, _, parameter in self._paged(parts):
                brings(parameter)

    def _paged(self, parts: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Parameter]]:
        return [
            (module, name, parameter)
            for part in parts
            for module in part.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in self._mapped
        ]

    def _before(self, part: nn.Module, _: Any) -> None:
        found = self._paged([part])
        copies = [self._bring(parameter) for _, _, parameter in found]
        self._replaced[part] = found
        for (module, name, _), copy in zip(found, copies, strict=True):
            module._parameters[name] = copy

    def _after(self, part: nn.Module, *_: Any) -> None:
        for module, name, parameter in self._replaced.pop(part, ()):
            module._parameters[name] = parameter

    def _bring(self, parameter: nn.Parameter) -> nn.Parameter:
        """The copy of a weight, which is the last to go now."""
        found = self._begin(parameter)
        self._copies.move_to_end(id(parameter))
        if found.coming is not None:
            torch.accelerator.current_stream(self.device).wait_event(found.coming.result())
            found.coming = None
        return found.copy

    def _begin(self, parameter: nn.Parameter) -> _Copy:
        """The copy of a weight, which may be on its way."""
        key = id(parameter)
        known = self._copies.get(key)
        if known is not None and known.source() is parameter:
            return known
        stays = parameter in self._staying
        self._make_room(0 if stays else parameter.nbytes)
        copied = self._allocate(parameter)
        coming = None
        if self._transfer is None:
            for there, part in zip(split(copied), self.parts(parameter), strict=True):
                there.copy_(part)
        else:
            coming = self._transfer.begin(copied, self.parts(parameter))
        found = _Copy(weakref.ref(parameter), nn.Parameter(copied, requires_grad=False), coming, stays)
        self._copies[key] = found
        self.bytes_read += copied.nbytes
        return found

    def _allocate(self, parameter: nn.Parameter) -> torch.Tensor:
        """Room for a copy; all others go where there is none."""
        mapped = self._mapped[parameter]
        try:
            return torch.empty_like(mapped, device=self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self._copies:
                raise
        self._copies.clear()
        free_cached_memory(self.device)
        return torch.empty_like(mapped, device=self.device)

    def _make_room(self, num_bytes: int) -> None:
        for key in [key for key, known in self._copies.items() if known.source() is None]:
            del self._copies[key]
        coming_and_going = [(key, known.copy.nbytes) for key, known in self._copies.items() if not known.stays]
        held = sum(of_copy for _, of_copy in coming_and_going)
        for key, of_copy in coming_and_going:
            if held + num_bytes <= self._room:
                return
            del self._copies[key]
            held -= of_copy

    def parts(self, parameter: nn.Parameter) -> Iterator[torch.Tensor]:
        """A weight from its file a piece at a time, of which one is in memory."""
        for part in split(self._mapped[parameter]):
            yield part
            drop_pages(part)

    def let_all_go(self) -> None:
        """Drops all copies of weights, and the pages of their files, from memory."""
        self._copies.clear()
        self.drop_pages(*self._mapped.values())  # type: ignore[no-untyped-call]

    def drop_pages(self, *tensors: torch.Tensor) -> None:
        """Takes the pages of mapped weights out of this process; they are read again when they are asked for.

        Args:
            tensors: parameters or views of whole ones; what is not mapped here stays as it is.
        """
        spans = {mapped.data_ptr(): mapped.nbytes for mapped in self._mapped.values()}  # type: ignore[no-untyped-call]
        for tensor in tensors:
            if spans.get(tensor.data_ptr()) == tensor.nbytes:
                drop_pages(tensor)


def pager_of(model: nn.Module) -> Pager | None:
    """The pager of a model; None where its weights are in memory."""
    return next((_owners[parameter] for parameter in model.parameters() if parameter in _owners), None)


def parts(parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """The values of a parameter piece by piece, flat; of a paged one with one piece in memory."""
    pager: Pager | None = _owners.get(parameter)  # type: ignore[no-untyped-call]
    return iter(split(parameter.data)) if pager is None else pager.parts(parameter)


def computing_device(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights are, or come to."""
    parameter = next(module.parameters())
    pager: Pager | None = _owners.get(parameter)  # type: ignore[no-untyped-call]
    return parameter.device if pager is None else pager.device


def _called(block: nn.Module) -> Iterator[nn.Module]:
    """The parts of a block that are called: a list of modules is not, those in it are."""
    for part in block.children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _called(part)
        else:
            yield part


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
