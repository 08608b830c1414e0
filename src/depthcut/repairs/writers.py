"""What writes to the stream in a group of kept sublayers, and how it is solved: projections together, then experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import linear

from depthcut.model.branches import Branch
from depthcut.model.watch import Call, watch
from depthcut.repairs.experts import Routed, SolvedExperts, routing, solve_experts
from depthcut.repairs.moments import Moments
from depthcut.repairs.projections import Weight, is_experts, reach

Solve = Callable[[Moments], tuple[torch.Tensor, torch.Tensor]]
"""`Moments.solve` with ridges."""

MapChange = tuple[Weight, torch.Tensor]
"""A weight and what its matrix changes by."""

Ran = tuple[slice, list[Call], torch.Tensor]
"""Of a batch: its rows, the calls of what writes, and (sequences, length, hidden) what the stream got."""


def writing(module: nn.Module) -> Weight:
    """The weight that a linear map, or experts, write with."""
    return Weight(module, "down_proj" if is_experts(module) else "weight")


def has_experts(block: nn.Module, branch: Branch) -> bool:
    """Whether experts write to the stream in a branch."""
    parts = [block.get_submodule(name) for name in (branch.core, *branch.beside)]
    return any(is_experts(module) for part in parts for module in part.modules())


def find_writers(block: nn.Module, branch: Branch, width: int, run: Callable[[], object]) -> list[nn.Module]:
    """The modules that write to the stream in a branch: its projection, or experts and the last maps of what is beside.

    Args:
        width: of the stream.
        run: runs the block on any text.
    """
    if branch.projection or not has_experts(block, branch):
        return [block.get_submodule(branch.projection)] if branch.projection else []
    parts = [block.get_submodule(name) for name in (branch.core, *branch.beside)]
    calls: dict[nn.Module, Call] = {}
    with watch(
        dict.fromkeys(module for part in parts for module in part.modules()),
        lambda call: calls.update({call.module: call}),
    ):
        run()

    def writers(part: nn.Module) -> list[nn.Module]:
        if part not in calls:
            return []
        own = set(part.modules())
        if is_experts(part):
            return [part] if routing(calls[part]) is not None else []
        maps = [module for module in calls if module in own and isinstance(module, nn.Linear)]
        alone = maps and not any(map(is_experts, own))
        if alone and calls[maps[-1]].returned.data_ptr() == calls[part].returned.data_ptr():
            return [maps[-1]]
        return [found for child in part.children() for found in writers(child)]

    found = [writer for part in parts for writer in writers(part)]
    # Of experts behind a map of their own, that map writes.
    return [writer for writer in found if calls[writer].returned.shape[-1] == width]


class Writers:
    """The regressions of all that writes to the stream in a group, from what is added batch by batch.

    Args:
        modules: what writes, in any order; at most one of them holds experts.
        gain: (hidden,) from `gain_after`.
        rooms: two of (sequences, length, hidden), where there are experts.
        widest: whether a map may change in any way; else only by a map of what it gave.
        sums: makes moments for so many inputs and targets.

    Attributes:
        modules: linear maps first.
        solved: of the experts, once all is solved.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        gain: torch.Tensor,
        rooms: Sequence[torch.Tensor],
        *,
        widest: bool,
        sums: Callable[[int, int], Moments],
    ) -> None:
        self.modules = sorted(modules, key=is_experts)
        self.solved: SolvedExperts | None = None
        self._maps = [Weight(module) for module in self.modules if not is_experts(module)]
        self._gain, self._rooms, self._widest, self._sums = gain, rooms, widest, sums
        self._widths = [weight.matrix.shape[1] if widest else len(gain) for weight in self._maps]
        self._moments = sums(sum(self._widths), len(gain))
        self._routed: list[Routed] = []
        self._energy = torch.zeros(len(gain), dtype=torch.float64)

    def add(
        self,
        calls: Sequence[Call],
        added: torch.Tensor,
        lacks: tuple[torch.Tensor, torch.Tensor],
        rows: slice,
        token_mask: torch.Tensor,
        held_out: torch.Tensor,
    ) -> None:
        """Adds a batch.

        Args:
            calls: of the modules.
            added: (sequences, length, hidden) what the stream got.
            lacks: from `lacking`.
            rows: of the batch in the rooms.
            token_mask: (sequences, length) bool.
            held_out: (sequences,) bool.
        """
        features, factors = self._read(calls, added)
        missing, weights = lacks
        token_mask = token_mask.to(weights.device)
        judging = (token_mask & held_out.to(token_mask.device)[:, None]) * weights
        self._energy += (missing.square() * judging[..., None]).sum(dim=(0, 1)).cpu()
        if self._maps:
            self._moments.add_sequences(features, *lacks, token_mask, held_out)
        routed = routing(calls[-1]) if self._rooms else None
        if routed is not None:
            given, experts, shares = routed
            inputs, lacking = self._rooms
            inputs[rows], lacking[rows] = given.view_as(missing).to(inputs), missing.to(lacking)
            self._routed.append(
                Routed(
                    given=inputs[rows].flatten(0, 1),
                    missing=lacking[rows].flatten(0, 1),
                    experts=experts.cpu(),
                    factors=(shares * factors.flatten(0, 1)).cpu(),
                    weights=(weights * token_mask).flatten().cpu(),
                    held_out=held_out[:, None].expand(token_mask.shape).flatten(),
                    device=missing.device,
                )
            )

    def solve(self, solve: Solve, again: Iterable[Ran], tokens_per_input: float) -> tuple[list[MapChange], float]:
        """What each weight changes by, and the share of the error on held-out tokens that is left; once all was added.

        Args:
            again: runs the group on every batch once more.
            tokens_per_input: see `solve_experts`.
        """
        changes: list[MapChange] = []
        gained = torch.zeros_like(self._energy)
        if self._maps:
            change, left = solve(self._moments)
            gained = ((1 - left) * self._moments.energy).cpu().double()
            parts = torch.split(change, self._widths, dim=1)
            changes = [
                (weight, part if self._widest else part.to(weight.matrix) @ weight.matrix)
                for weight, part in zip(self._maps, parts, strict=True)
            ]
            for rows, calls, added in again if self._rooms else ():
                features = self._read(calls, added)[0]
                self._rooms[1][rows] -= linear(features, change.to(features)).to(self._rooms[1])
        if self._rooms:
            self.solved = solve_experts(
                self.modules[-1],
                self._routed,
                solve,
                tokens_per_input=tokens_per_input,
                widest=self._widest,
                sums=self._sums,
            )
            changes.append((writing(self.modules[-1]), self.solved.change))
            gained += self.solved.gained
        squares = self._gain.cpu().double().square()
        energy = float((self._energy * squares).sum())
        return changes, 1 - float((gained * squares).sum()) / energy if energy else 1.0

    def _read(self, calls: Sequence[Call], added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sequences, length, features) of the linear maps, and (sequences, length, 1) the factor of the experts.

        Features are scaled by how much of what is written reaches the stream.
        """
        tokens = added.shape[:-1]
        # Llama 4's experts write one after the other.
        # On a model of several devices what writes may lie elsewhere than its block.
        written = [call.returned.view(-1, *added.shape).sum(dim=0).to(added.device) for call in calls]
        gain = self._gain.to(added.device)
        if self._rooms:
            factors = reach(added, written, gain)
        else:
            factors = reach(added, [torch.stack(written).sum(dim=0)], gain) * len(calls)
        features = [
            factor.to(given.device) * (given if self._widest else linear(given, weight.matrix.to(given)))
            for weight, call, factor in zip(self._maps, calls, factors, strict=False)
            for given in [call.given.view(*tokens, -1)]
        ]
        return torch.cat(features, dim=-1) if features else added, factors[-1]
