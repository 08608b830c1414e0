"""Sums and ridge regressions on a model's device, in as much precision as it has; from the host where it is too small.

Three kinds of devices: where float64 is quick (CPUs, data centre GPUs) it is what sums and factors are in. Where it is
slow, sums are, and factors are float32, their solutions refined by residuals in float64. Where there is none (MPS),
sums are pairs of float32, and residuals tell whether a solution can be trusted; else it is taken on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from depthcut.model.device import free_cached_memory, has_float64, widest_type
from depthcut.process.faults import is_out_of_memory

PANEL, LEAST_PANEL = 2048, 256
"""Columns of a matrix that are brought to the device at a time, and with fewer of which the CPU works alone."""

REFINEMENTS = 3
"""Corrections of a solution from a rounded factor, at most."""
LARGEST_CORRECTION = 1e-3
"""The last correction, as a share of its solution: a larger one says that the factor is too rough."""

QUICK_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""CUDA's compute capabilities with a float64 unit for two of float32; all others have one for 32 or 64."""

T = TypeVar("T")
CPU = torch.device("cpu")


@functools.cache
def is_quick_in_float64(device: torch.device) -> bool:
    """Whether float64 costs about twice what float32 does, or there is no telling."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) in QUICK_FLOAT64
    return has_float64(device)


class Sums:
    """Sums that grow by many small parts: float64, or two float32 of which the second holds what the first rounds off.

    Attributes:
        high: of the given shape, the sums.
        low: what is to be added to them; None where they are float64.
    """

    def __init__(self, high: torch.Tensor, low: torch.Tensor | None = None) -> None:
        self.high, self.low = high, low

    @classmethod
    def zeros(cls, *shape: int, device: torch.device) -> Sums:
        high = torch.zeros(shape, dtype=widest_type(device), device=device)
        return cls(high, None if high.dtype == torch.float64 else torch.zeros_like(high))

    def __getitem__(self, where: object) -> Sums:
        """Some of the sums, in the same memory."""
        return Sums(self.high[where], None if self.low is None else self.low[where])  # type: ignore[index]

    def __add__(self, other: Sums) -> Sums:
        if self.low is None or other.low is None:
            return Sums(self.high + other.high)
        both = Sums(self.high.clone(), self.low + other.low)
        both.add(other.high)
        return both

    def add(self, values: torch.Tensor) -> None:
        """Adds in place."""
        values = values.to(self.high.device)
        if self.low is None:
            self.high += values
            return
        total = self.high + values
        added = total - self.high
        self.low += (self.high - (total - added)) + (values - added)
        self.high.copy_(total)

    def total(self) -> torch.Tensor:
        """The sums in one tensor; float64 where they are."""
        return self.high if self.low is None else self.high + self.low

    def mirror(self, block: int) -> None:
        """Fills what is below the diagonal blocks of a symmetric matrix from what is above them."""
        for part in (self.high, self.low):
            for begin in range(0, 0 if part is None else len(part), block):
                assert part is not None
                rows, after = slice(begin, begin + block), slice(begin + block, None)
                part[after, rows] = part[rows, after].T

    def on_host(self) -> Sums:
        """The same as float64 in the memory of the host."""
        high = self.high.cpu().double()
        return Sums(high if self.low is None else high + self.low.cpu().double())


class Solver:
    """Products with a symmetric matrix and solutions of its systems, computed on a device; the matrix may lie on the
    host, and comes to the device in panels then, fewer columns at a time where memory runs out.

    Args:
        device: where vectors are, and where is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._panel = device, PANEL

    def times(self, matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """(n, n) @ (n, vectors), where the vectors are."""
        if matrix.device == vectors.device == self.device:
            return matrix @ vectors
        return self._fitting(lambda: self._times(matrix, vectors))

    def _times(self, matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        product = torch.empty_like(vectors)
        for columns in _panels(vectors.shape[1], self._panel):
            some = vectors[:, columns].to(self.device)
            for rows in _panels(len(matrix), self._panel):
                product[rows, columns] = (matrix[rows].to(self.device) @ some).to(product.device)
        return product

    def solve(self, matrix: torch.Tensor, penalty: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Ridge regression; zero where the system is singular to working precision.

        Args:
            matrix: (n, n) symmetric.
            penalty: (n,) what is added to its diagonal.
            products: (n, targets), in the matrix's type.
        """
        if matrix.device != self.device:
            return self._fitting(lambda: self._solve_in_panels(matrix, penalty, products))
        factor = _factor(matrix, penalty)
        return torch.zeros_like(products) if factor is None else torch.cholesky_solve(products, factor)

    def solve_sums(self, matrix: Sums, penalty: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """The same in float64, or where the device is slow in that as well as refinement gets, else on the CPU.

        Args:
            products: (n, targets), in the type of the sums.
        """
        if is_quick_in_float64(matrix.high.device):
            return self.solve(matrix.high, penalty, products)
        solution = self._solve_refined(matrix, penalty, products)
        if solution is not None:
            return solution
        exact = Solver(CPU).solve(matrix.on_host().high, penalty.cpu().double(), products.cpu().double())
        return exact.to(products)

    def _solve_refined(self, matrix: Sums, penalty: torch.Tensor, products: torch.Tensor) -> torch.Tensor | None:
        """From a factor in float32, corrected by what it leaves; None where that cannot be trusted."""
        factor = _factor(matrix.high.float(), penalty.float())
        if factor is None:
            return None
        solution = torch.cholesky_solve(products.float(), factor).to(products)
        for _ in range(REFINEMENTS):
            missing = products - matrix.high @ solution - penalty[:, None] * solution
            if matrix.low is not None:
                missing -= matrix.low @ solution
            correction = torch.cholesky_solve(missing.float(), factor).to(products)
            solution += correction
            share = float(correction.norm() / solution.norm().clamp_min(torch.finfo(torch.float32).tiny))
            if share <= torch.finfo(torch.float32).eps:
                break
        return solution if share <= LARGEST_CORRECTION else None

    def _solve_in_panels(self, matrix: torch.Tensor, penalty: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Cholesky's factor panel by panel, left to right, each corrected by those before it."""
        factor = matrix.clone()
        factor.diagonal().add_(penalty.to(factor))
        panels = list(_panels(len(factor), self._panel))
        for place, columns in enumerate(panels):
            rows = slice(columns.start, None)
            panel = factor[rows, columns].to(self.device)
            width = panel.shape[1]
            for before in panels[:place]:
                earlier = factor[rows, before].to(self.device)
                panel -= earlier @ earlier[:width].T
            corner, failed = torch.linalg.cholesky_ex(panel[:width])
            if failed:
                return torch.zeros_like(products)
            panel[:width] = corner
            panel[width:] = torch.linalg.solve_triangular(corner, panel[width:].T, upper=False).T
            factor[rows, columns] = panel.to(factor.device)
        solution = torch.empty_like(products)
        for some in _panels(products.shape[1], self._panel):
            found = products[:, some].to(self.device, copy=True)
            for columns in panels:
                panel = factor[columns.start :, columns].to(self.device)
                width = panel.shape[1]
                found[columns] = torch.linalg.solve_triangular(panel[:width], found[columns], upper=False)
                found[columns.stop :] -= panel[width:] @ found[columns]
            for columns in reversed(panels):
                panel = factor[columns.start :, columns].to(self.device)
                width = panel.shape[1]
                found[columns] -= panel[width:].T @ found[columns.stop :]
                found[columns] = torch.linalg.solve_triangular(panel[:width].T, found[columns], upper=True)
            solution[:, some] = found.to(solution.device)
        return solution

    def _fitting(self, compute: Callable[[], T]) -> T:
        """What is computed, with narrower panels wherever memory runs out, at last on the CPU."""
        while self.device != CPU:
            try:
                return compute()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            free_cached_memory(self.device)
            self._panel //= 2
            if self._panel < LEAST_PANEL:
                self.device = CPU
        return compute()


def _factor(matrix: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor | None:
    """Cholesky's lower factor of a matrix with a penalty on its diagonal; None where there is none."""
    matrix = matrix.clone()
    matrix.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else factor


def _panels(count: int, width: int) -> Iterator[slice]:
    """Slices that cover so many columns."""
    return (slice(begin, min(begin + width, count)) for begin in range(0, count, width))
