"""Linear regression from streamed second moments, its ridge chosen for every output on tokens that are held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from depthcut.model.device import free_cached_memory, has_float64, widest_type
from depthcut.process.faults import is_out_of_memory
from depthcut.repairs.solving import CPU, Solver, Sums, is_quick_in_float64
from depthcut.types import InputError

BLOCK = {"cpu": 192}
"""Columns of the inputs that are multiplied at a time with all that follow: what is left out mirrors the rest."""
BLOCK_ELSEWHERE = 1024
"""The same on devices that need more work at a time."""

TOKENS_AT_ONCE = 1024
"""Tokens whose products are summed by float32 alone where the sums over calls are not float64."""

FITTED, HELD_OUT = 0, 1
HELD_OUT_SHARE = 4
SMALLEST_ENERGY = 1e-6
"""Inputs with less than this share of the mean energy are penalised as if they had it."""


def held_out_sequences(num_sequences: int) -> torch.Tensor:
    """(sequences,) bool: every fourth, or the last of fewer, decides about ridges and is fitted to only afterwards.

    Raises:
        InputError: there is but one.
    """
    if num_sequences < 2:
        raise InputError("a repair is fitted to some sequences and judged on others; give it at least 2")
    held_out = torch.arange(num_sequences) % HELD_OUT_SHARE == HELD_OUT_SHARE - 1
    held_out[-1] |= not bool(held_out.any())
    return held_out


class Moments:
    """Sums over tokens from which maps from inputs to targets are solved; memory does not grow with the tokens.

    All of it lies and is computed on the device of the first tokens, or in the memory of the host from where that one
    runs out on, and is then computed on the device a part at a time.

    Args:
        num_inputs: features of a token.
        num_targets: outputs that are regressed on them.
        precise: take products in float64, and choose ridges in it, where the inputs are exact enough for it and the
            ridges so small that they need it; else in float32. Sums over calls and the map are float64 always, or as
            near to it as the device comes (`solving.py`).
        room: bytes that an accelerator has for the sums and for solving them; as many as it gives where left out.
    """

    def __init__(self, num_inputs: int, num_targets: int, *, precise: bool = True, room: int | None = None) -> None:
        self._shape, self._precise, self._room = (num_inputs, num_targets), precise, room
        self._device: torch.device | None = None

    def _begin(self, device: torch.device) -> None:
        """Sums of nothing on a device, or on the host where it has no room for them."""
        quick = self._precise and is_quick_in_float64(device)
        self._device, self._product_dtype = device, torch.float64 if quick else torch.float32
        self._block = BLOCK.get(device.type, BLOCK_ELSEWHERE)
        try:
            if device != CPU and self._room is not None and self.bytes(*self._shape) > self._room:
                raise torch.OutOfMemoryError
            self._make(device)
        except RuntimeError as error:
            if device == CPU or not is_out_of_memory(error):
                raise
            self._make(CPU)
            self._device = device if has_float64(device) else CPU

    def _make(self, device: torch.device) -> None:
        num_inputs, num_targets = self._shape
        # Of the inputs, which are symmetric, the blocks on and above the diagonal; `_whole` mirrors them.
        self._inputs = Sums.zeros(2, num_inputs, num_inputs, device=device)
        self._products = Sums.zeros(2, num_inputs, num_targets, device=device)
        self._energy = Sums.zeros(2, num_targets, device=device)

    def _leave(self) -> None:
        """Moves the sums to the memory of the host, where they are float64, which the device has to know to help."""
        assert self._device is not None
        self._inputs, self._products, self._energy = (
            sums.on_host() for sums in (self._inputs, self._products, self._energy)
        )
        free_cached_memory(self._device)
        self._device = self._device if has_float64(self._device) else CPU

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, part: int) -> None:
        """Adds tokens.

        Args:
            inputs: (tokens, inputs).
            targets: (tokens, targets), and on the same device.
            weights: (tokens,), how much each token counts.
            part: which sums they go to, `FITTED` or `HELD_OUT`.
        """
        if self._device is None:
            self._begin(inputs.device)
        step = len(inputs) if has_float64(inputs.device) else TOKENS_AT_ONCE
        for begin in range(0, len(inputs), max(1, step)):
            tokens = slice(begin, begin + step)
            x, y, weight = (values[tokens].to(self._product_dtype) for values in (inputs, targets, weights))
            self._add(x, y, weight, part)

    def _add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, part: int) -> None:
        root = weights.sqrt()[:, None]
        inputs, targets = inputs * root, targets * root
        for begin in range(0, inputs.shape[1], self._block):
            rows = slice(begin, begin + self._block)
            self._grow("_inputs", (part, rows, slice(begin, None)), inputs[:, rows].T, inputs[:, begin:])
            self._grow("_products", (part, rows), inputs[:, rows].T, targets)
        self._energy[part].add(targets.square().sum(dim=0, dtype=widest_type(targets.device)))

    def _grow(self, name: str, where: object, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds a product to some of the sums, which leave the device where there is no room for it."""
        try:
            getattr(self, name)[where].add(left @ right)
        except RuntimeError as error:
            if left.device == CPU or not is_out_of_memory(error):
                raise
        else:
            return
        self._leave()
        getattr(self, name)[where].add(left @ right)

    def add_sequences(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        counted: torch.Tensor,
        held_out: torch.Tensor,
    ) -> None:
        """Adds the counted tokens of whole sequences.

        Args:
            inputs, targets, weights: as for `add`, but (sequences, length, ...).
            counted: (sequences, length) bool.
            held_out: (sequences,) bool, which part a sequence belongs to.
        """
        targets, weights, counted = (values.to(inputs.device) for values in (targets, weights, counted))
        for part in (FITTED, HELD_OUT):
            chosen = counted & (held_out == (part == HELD_OUT)).to(counted.device)[:, None]
            self.add(inputs[chosen], targets[chosen], weights[chosen], part)

    def solve(self, ridges: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """The map that predicts the targets, by ridge regression towards zero.

        Each input is penalised by the root of its energy, between a common penalty and one that knows no units of
        measure; ridges are relative to the mean energy. Each output goes from the strongest ridge to weaker ones until
        its error on the held-out tokens rises again, stays zero where that never falls, and is then solved anew on all
        tokens.

        Returns:
            (targets, inputs) the map, and (targets,) the share of the held-out error that is left with it: at most 1.
        """
        try:
            return self._solve(ridges)
        except RuntimeError as error:
            # What a device cannot do the host can, and what it has no room for comes to it in parts.
            cannot = isinstance(error, NotImplementedError)
            if self._inputs.high.device == CPU or not (cannot or is_out_of_memory(error)):
                raise
        self._leave()
        self._device = CPU if cannot else self._device
        return self._solve(ridges)

    def _solve(self, ridges: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        energies = self._energies()
        penalty = _penalty(energies.sum(dim=0))
        before = self.energy
        chosen, least = self._choose(ridges, penalty, energies)
        tiny = torch.finfo(before.dtype).tiny
        left = torch.where(before > 0, least.clamp_min(0) / before.clamp_min(tiny), torch.ones_like(before))
        found, kinds = torch.zeros_like(self._products.high[FITTED]), sorted(set(chosen.tolist()) - {0})
        assert self._device is not None
        solver, total = Solver(self._device), self._whole(FITTED) + self._whole(HELD_OUT)
        for ridge in kinds:
            columns = chosen == ridge
            products = (self._products[FITTED] + self._products[HELD_OUT]).total()[:, columns]
            found[:, columns] = solver.solve_sums(total, ridge * penalty, products)
        return found.T.contiguous(), left

    def _choose(
        self, ridges: Sequence[float], penalty: torch.Tensor, energies: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(targets,) the best ridge of each, 0 where none helps, and the held-out error with it."""
        assert self._device is not None
        solver, dtype = Solver(self._device), self._product_dtype
        fitted, held_out = (self._whole(part).total().to(dtype) for part in (FITTED, HELD_OUT))
        fitted_products, held_out_products = (self._products[part].total().to(dtype) for part in (FITTED, HELD_OUT))
        # The fitted part is a part of the total, and so is the penalty that belongs to it.
        share = energies[FITTED].sum() / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        penalty = (share * penalty).to(dtype)
        least = self.energy.clone()
        chosen = torch.zeros_like(least)
        falls = torch.arange(len(least), device=least.device)
        for ridge in sorted(ridges, reverse=True):
            tried = solver.solve(fitted, ridge * penalty, fitted_products[:, falls])
            fits = tried * (solver.times(held_out, tried) - 2 * held_out_products[:, falls])
            error = self.energy[falls] + fits.sum(dim=0, dtype=least.dtype)
            better = error < least[falls]
            falls, error = falls[better], error[better]
            least[falls], chosen[falls] = error, ridge
            if not len(falls):
                break
        return chosen, least

    @staticmethod
    def bytes(num_inputs: int, num_targets: int) -> int:
        """What the sums take, and what solving them takes beside."""
        return 8 * num_inputs * (5 * num_inputs + 6 * num_targets)

    @property
    def inputs(self) -> torch.Tensor:
        """(inputs, inputs) second moments of the inputs over all tokens."""
        return (self._whole(FITTED) + self._whole(HELD_OUT)).total()

    def _energies(self) -> torch.Tensor:
        """(parts, inputs) the energy of each input."""
        return torch.stack([self._inputs[part].total().diagonal() for part in (FITTED, HELD_OUT)])

    def _whole(self, part: int) -> Sums:
        """(inputs, inputs) second moments of the inputs over a part of the tokens; shares memory with the sums."""
        sums = self._inputs[part]
        sums.mirror(self._block)
        return sums

    def share_left(self, matrix: torch.Tensor) -> float:
        """The share of the held-out error that a map, (targets, inputs), leaves."""
        before = float(self.energy.sum())
        held_out, products = self._whole(HELD_OUT).total(), self._products[HELD_OUT].total()
        fits = matrix.T * (held_out @ matrix.T - 2 * products)
        return (before + float(fits.sum())) / before if before else 1.0

    @property
    def energy(self) -> torch.Tensor:
        """(targets,) the held-out error before anything is fitted."""
        return self._energy[HELD_OUT].total()


def _penalty(energy: torch.Tensor) -> torch.Tensor:
    """(inputs,) what a ridge of one adds to the second moment of each input."""
    mean = energy.mean().clamp_min(torch.finfo(energy.dtype).tiny)
    return (mean * energy.clamp_min(SMALLEST_ENERGY * mean)).sqrt()
