"""The linear maps of a branch and its experts: what they are given, what they write, how much of it the stream gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthcut.model.branches import Branch
from depthcut.model.device import widest_type
from depthcut.model.paging import computing_device, like
from depthcut.model.watch import Call, watch


def normed(block: nn.Module, branch: Branch, stream: torch.Tensor) -> torch.Tensor:
    """What a branch reads of the stream."""
    for name in (*branch.shared_norms, *branch.norms_before):
        stream = getattr(block, name)(stream)
    return stream


def gain_after(block: nn.Module, branch: Branch, width: int) -> torch.Tensor:
    """(hidden,) what the norms after a branch multiply each channel with; ones where there are none."""
    gain = torch.ones(1, 1, width, device=computing_device(block), dtype=next(block.parameters()).dtype)
    for name in branch.norms_after:
        gain = getattr(block, name)(gain)
    return gain[0, 0]


def reach(added: torch.Tensor, written: Sequence[torch.Tensor], gain: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The factor between what each of several maps wrote, times the gain, and what of it the stream got.

    One in most families; a constant where the family scales its branches or its experts, one over the length where a
    norm comes after, a gate's value before a shared expert. For small changes of the maps it stays the same.

    Args:
        added: (sequences, length, hidden).
        written: of each map, likewise.
        gain: (hidden,) from `gain_after`.

    Returns:
        Of each, (sequences, length, 1).
    """
    expected = torch.stack([part.float() * gain.float() for part in written], dim=-2)
    products, fits = expected @ expected.mT, expected @ added.float().unsqueeze(-1)
    limits = torch.finfo(torch.float32)
    # Nothing reaches the stream of a map that wrote nothing; maps that wrote the same share what did.
    products.diagonal(dim1=-2, dim2=-1).mul_(1 + 16 * limits.eps).clamp_min_(limits.tiny)
    if len(written) == 1:
        return (fits.squeeze(-1) / products.squeeze(-1),)
    # As many numbers as tokens, and not every device solves systems.
    factors: torch.Tensor = torch.linalg.solve(products.cpu(), fits.cpu()).to(fits.device)
    return factors.unbind(dim=-2)


def lacking(after: torch.Tensor, meant: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What projections would have to add for the stream to equal the dense one, and the weight of each token in the
    fit.

    Args:
        after: (sequences, length, hidden) the stream as it is.
        meant: the same of the dense model.
        gain: (hidden,) from `gain_after`; channels that no change reaches lack nothing.

    Returns:
        (sequences, length, hidden) in float64 where the device has it, and (sequences, length) one over the squared
        length of the meant stream.
    """
    exact = widest_type(meant.device)
    missing = torch.where(gain == 0, 0, (meant - after).to(exact) / gain.to(exact))
    return missing, 1 / meant.to(exact).square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Weight:
    """A matrix of a linear map, or the stack of matrices of a block's experts."""

    module: nn.Module
    name: str = "weight"

    @property
    def matrix(self) -> torch.Tensor:
        """(outputs, inputs), or (experts, outputs, inputs)."""
        weight: torch.Tensor = getattr(self.module, self.name)
        return weight.mT if self._transposed else weight

    def replace(self, matrix: torch.Tensor) -> None:
        """Gives the module a new matrix, shaped as `matrix`; the old tensor, which other models may share, stays."""
        matrix = matrix.mT if self._transposed else matrix
        setattr(self.module, self.name, like(getattr(self.module, self.name), matrix))

    @property
    def _transposed(self) -> bool:
        # Of stacked experts only Llama 4's do not say it.
        return isinstance(self.module, Conv1D) or (
            is_experts(self.module) and bool(getattr(self.module, "is_transposed", True))
        )


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the matrices of a block's experts stacked, each of which writes by a linear map."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.dim() == 3 and not getattr(module, "has_post_expert_norm", False)


def reading_name(experts: nn.Module) -> str:
    """The name of what stacked experts read with: gate and up projection in one, or the latter alone."""
    return "gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj"


@contextmanager
def calls_of(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Collects the calls of modules, in the order of the list."""
    seen: dict[nn.Module, Call] = {}
    collected: list[Call] = []

    def keep(call: Call) -> None:
        # What one wrote may be added to in place.
        seen[call.module] = replace(call, output=call.returned.clone())

    with watch(modules, keep):
        yield collected
    collected.extend(seen[module] for module in modules if module in seen)


@contextmanager
def maps_that_read(parts: Sequence[nn.Module]) -> Iterator[list[Weight]]:
    """Collects the linear maps of a branch that are given what the branch itself is given, a router's and its experts'.

    Args:
        parts: the first module of the branch, and those beside it, in any order: all are given the same.
    """
    given: list[torch.Tensor] = []
    found: dict[nn.Module, Weight] = {}

    def keep(call: Call) -> None:
        read = given[0]
        if call.given.shape[-1] != read.shape[-1]:
            return
        if is_experts(call.module):
            # They may be given each token once an expert, scaled.
            found[call.module] = Weight(call.module, reading_name(call.module))
        elif call.given.numel() == read.numel() and torch.equal(call.given.to(read).view_as(read), read):
            found[call.module] = Weight(call.module)

    readers = [module for part in parts for module in part.modules() if is_experts(module) or _is_map(module)]
    with (
        watch(parts, lambda call: given.append(call.given), before=True),
        watch(dict.fromkeys(readers), keep, before=True),
    ):
        collected: list[Weight] = []
        yield collected
    collected.extend(found.values())


def _is_map(module: nn.Module) -> bool:
    """Whether a module multiplies with its weight: a linear map, or a router, which has a class of its family's."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding)
