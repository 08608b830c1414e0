"""The linear maps of a branch: what they are given, what they write, how much of that reaches the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthcut.model.branches import Branch
from depthcut.model.device import widest_type
from depthcut.model.paging import like
from depthcut.model.watch import Call, watch


def normed(block: nn.Module, branch: Branch, stream: torch.Tensor) -> torch.Tensor:
    """What a branch reads of the stream."""
    for name in (*branch.shared_norms, *branch.norms_before):
        stream = getattr(block, name)(stream)
    return stream


def gain_after(block: nn.Module, branch: Branch, width: int) -> torch.Tensor:
    """(hidden,) what the norms after a branch multiply each channel with; ones where there are none."""
    gain = torch.ones(1, 1, width, device=next(block.parameters()).device, dtype=next(block.parameters()).dtype)
    for name in branch.norms_after:
        gain = getattr(block, name)(gain)
    return gain[0, 0]


def reach(added: torch.Tensor, written: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """(sequences, length, 1) the factor between what projections wrote, times the gain, and what the stream got.

    One in most families; a constant where the family scales its branches, and one over the length where a norm comes
    after. For small changes of the projection it stays the same.
    """
    expected = written.float() * gain.float()
    energy = expected.square().sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (added.float() * expected).sum(dim=-1, keepdim=True) / energy


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


def matrix_of(module: nn.Module) -> torch.Tensor:
    """(outputs, inputs) of a linear map."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def replace_matrix(module: nn.Module, matrix: torch.Tensor) -> None:
    """Gives a linear map a new matrix, (outputs, inputs); the old tensor, which other models may share, stays."""
    matrix = matrix.T if isinstance(module, Conv1D) else matrix
    module.weight = like(module.weight, matrix)  # type: ignore[arg-type]


@contextmanager
def calls_of(modules: Sequence[nn.Module], tokens: torch.Size) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects input and output of each module, in the order of the list, both of shape (*tokens, features)."""
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    collected: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(call: Call) -> None:
        seen[call.module] = (call.given.view(*tokens, -1), call.returned.view(*tokens, -1))

    with watch(modules, keep):
        yield collected
    collected.extend(seen[module] for module in modules if module in seen)


@contextmanager
def maps_that_read(core: nn.Module) -> Iterator[list[nn.Module]]:
    """Collects the linear maps of a branch that are given what the branch itself is given."""
    given: list[torch.Tensor] = []
    found: list[nn.Module] = []

    def keep(call: Call) -> None:
        if call.given.data_ptr() == given[0].data_ptr() and call.given.shape[-1] == given[0].shape[-1]:
            found.append(call.module)

    linear = [module for module in core.modules() if isinstance(module, nn.Linear | Conv1D)]
    with watch([core], lambda call: given.append(call.given), before=True), watch(linear, keep, before=True):
        yield found
