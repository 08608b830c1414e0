"""Linear regression from streamed second moments, its ridge chosen for every output on tokens that are held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from depthcut.types import InputError

BLOCK = 192
"""Columns of the inputs that are multiplied at a time with all that follow: what is left out mirrors the rest."""

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

    Args:
        num_inputs: features of a token.
        num_targets: outputs that are regressed on them.
        precise: take products in float64, and choose ridges in it, where the inputs are exact enough for it and the
            ridges so small that they need it; else in float32. Sums over calls and the map are float64 always.
    """

    def __init__(self, num_inputs: int, num_targets: int, *, precise: bool = True) -> None:
        self._product_dtype = torch.float64 if precise else torch.float32
        # Of the inputs, which are symmetric, the blocks on and above the diagonal; `_whole` mirrors them.
        self._inputs = torch.zeros(2, num_inputs, num_inputs, dtype=torch.float64)
        self._products = torch.zeros(2, num_inputs, num_targets, dtype=torch.float64)
        self._energy = torch.zeros(2, num_targets, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, part: int) -> None:
        """Adds tokens.

        Args:
            inputs: (tokens, inputs).
            targets: (tokens, targets).
            weights: (tokens,), how much each token counts.
            part: which sums they go to, `FITTED` or `HELD_OUT`.
        """
        inputs, targets, weights = (values.to("cpu", self._product_dtype) for values in (inputs, targets, weights))
        root = weights.sqrt()[:, None]
        inputs, targets = inputs * root, targets * root
        for begin in range(0, inputs.shape[1], BLOCK):
            rows = slice(begin, begin + BLOCK)
            self._inputs[part, rows, begin:] += inputs[:, rows].T @ inputs[:, begin:]
        self._products[part] += inputs.T @ targets
        self._energy[part] += targets.square().double().sum(dim=0)

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
        penalty = _penalty(self.inputs)
        before = self._energy[HELD_OUT]
        chosen, least = self._choose(ridges, penalty)
        found, total = torch.zeros_like(self._products[FITTED]), self.inputs
        for ridge in sorted(set(chosen.tolist()) - {0}):
            columns = chosen == ridge
            found[:, columns] = _solve(total, ridge * penalty, self._products.sum(dim=0)[:, columns])
        left = torch.where(before > 0, least.clamp_min(0) / before.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
        return found.T.contiguous(), left

    def _choose(self, ridges: Sequence[float], penalty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(targets,) the best ridge of each, 0 where none helps, and the held-out error with it."""
        fitted, held_out = (self._whole(part).to(self._product_dtype) for part in (FITTED, HELD_OUT))
        fitted_products, held_out_products = self._products.to(self._product_dtype)
        # The fitted part is a part of the total, and so is the penalty that belongs to it.
        energies = self._inputs.diagonal(dim1=1, dim2=2).sum(dim=1)
        share = energies[FITTED] / energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
        penalty = (share * penalty).to(self._product_dtype)
        least = self._energy[HELD_OUT].clone()
        chosen = torch.zeros_like(least)
        falls = torch.arange(len(least))
        for ridge in sorted(ridges, reverse=True):
            tried = _solve(fitted, ridge * penalty, fitted_products[:, falls])
            fits = (tried * (held_out @ tried - 2 * held_out_products[:, falls])).double().sum(dim=0)
            error = self._energy[HELD_OUT, falls] + fits
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
        return self._whole(FITTED) + self._whole(HELD_OUT)

    def _whole(self, part: int) -> torch.Tensor:
        """(inputs, inputs) second moments of the inputs over a part of the tokens; shares memory with the sums."""
        sums = self._inputs[part]
        for begin in range(0, len(sums), BLOCK):
            rows, after = slice(begin, begin + BLOCK), slice(begin + BLOCK, None)
            sums[after, rows] = sums[rows, after].T
        return sums

    def share_left(self, matrix: torch.Tensor) -> float:
        """The share of the held-out error that a map, (targets, inputs), leaves."""
        before = float(self.energy.sum())
        fits = matrix.T * (self._whole(HELD_OUT) @ matrix.T - 2 * self._products[HELD_OUT])
        return (before + float(fits.sum())) / before if before else 1.0

    @property
    def energy(self) -> torch.Tensor:
        """(targets,) the held-out error before anything is fitted."""
        return self._energy[HELD_OUT]


def _penalty(inputs: torch.Tensor) -> torch.Tensor:
    """(inputs,) what a ridge of one adds to the second moment of each input."""
    energy = inputs.diagonal()
    mean = energy.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return (mean * energy.clamp_min(SMALLEST_ENERGY * mean)).sqrt()


def _solve(inputs: torch.Tensor, penalty: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Ridge regression; zero where the system is singular to working precision."""
    matrix = inputs.clone()
    matrix.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    if failed:
        return torch.zeros_like(products)
    solution: torch.Tensor = torch.cholesky_solve(products, factor)
    return solution
