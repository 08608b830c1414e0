"""Linear regression from streamed second moments, its ridge chosen for every output on tokens that are held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from depthcut.types import InputError

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
        dtype: of the model that they come from. Where it has 16 bits the products of one call are taken in float32;
            sums over calls are float64 always.
        num_parts: of the text, whose sums are kept apart.
    """

    def __init__(
        self, num_inputs: int, num_targets: int, dtype: torch.dtype = torch.float32, num_parts: int = 2
    ) -> None:
        self._product_dtype = torch.float32 if dtype.itemsize == 2 else torch.float64
        self._inputs = torch.zeros(num_parts, num_inputs, num_inputs, dtype=torch.float64)
        self._products = torch.zeros(num_parts, num_inputs, num_targets, dtype=torch.float64)
        self._energy = torch.zeros(num_parts, num_targets, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, part: int) -> None:
        """Adds tokens.

        Args:
            inputs: (tokens, inputs).
            targets: (tokens, targets).
            weights: (tokens,), how much each token counts.
            part: which sums they go to; `solve` knows `FITTED` and `HELD_OUT`.
        """
        inputs, targets, weights = (values.to("cpu", self._product_dtype) for values in (inputs, targets, weights))
        weighted = inputs * weights[:, None]
        self._inputs[part] += weighted.T @ inputs
        self._products[part] += weighted.T @ targets
        self._energy[part] += (targets.square() * weights[:, None]).double().sum(dim=0)

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

    def fit(self, ridge: float, without: int) -> torch.Tensor:
        """(targets, inputs) the map by ridge regression, for all targets alike, that all parts but one give."""
        inputs = self.inputs - self._inputs[without]
        products = self._products.sum(dim=0) - self._products[without]
        return _solve(inputs, ridge * _penalty(inputs), products).T.contiguous()

    def solve(self, ridges: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """The map that predicts the targets, by ridge regression towards zero.

        Each input is penalised by the root of its energy, between a common penalty and one that knows no units of
        measure; ridges are relative to the mean energy. Each output takes the ridge with the least error on the
        held-out tokens, or stays zero where none helps there, and is then solved anew on all tokens.

        Returns:
            (targets, inputs) the map, and (targets,) the share of the held-out error that is left with it: at most 1.
        """
        total = self._inputs.sum(dim=0)
        energy = total.diagonal()
        penalty = _penalty(total)
        before = self._energy[HELD_OUT]
        found = torch.zeros_like(self._products[FITTED])
        least = before.clone()
        chosen = torch.full_like(before, -1, dtype=torch.long)
        for index, ridge in enumerate(ridges):
            # The fitted part is a part of the total, and so is the penalty that belongs to it.
            share = self._inputs[FITTED].diagonal().sum() / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)
            tried = _solve(self._inputs[FITTED], ridge * share * penalty, self._products[FITTED])
            fits = (tried * (self._inputs[HELD_OUT] @ tried - 2 * self._products[HELD_OUT])).sum(dim=0)
            better = before + fits < least
            least = torch.where(better, before + fits, least)
            chosen[better] = index
        for index in sorted(set(chosen.tolist()) - {-1}):
            columns = chosen == index
            products = self._products.sum(dim=0)[:, columns]
            found[:, columns] = _solve(total, ridges[index] * penalty, products)
        left = torch.where(before > 0, least.clamp_min(0) / before.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
        return found.T.contiguous(), left

    @staticmethod
    def bytes(num_inputs: int, num_targets: int) -> int:
        """What the sums take, and what solving them takes beside."""
        return 8 * num_inputs * (5 * num_inputs + 6 * num_targets)

    @property
    def inputs(self) -> torch.Tensor:
        """(inputs, inputs) second moments of the inputs over all tokens."""
        return self._inputs.sum(dim=0)

    def share_left(self, matrix: torch.Tensor) -> float:
        """The share of the held-out error that a map, (targets, inputs), leaves."""
        before = float(self.energy.sum())
        fits = matrix.T * (self._inputs[HELD_OUT] @ matrix.T - 2 * self._products[HELD_OUT])
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
