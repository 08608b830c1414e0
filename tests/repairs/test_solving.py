"""Moments on devices that are slow in float64, or lack it: they solve what float64 solves, or pass it on."""

import pytest
import torch

from depthcut.repairs import moments, solving
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments
from depthcut.repairs.solving import CPU, Solver, Sums

RIDGES = (1e-3, 0.03, 0.3)
EXACT, ROUNDED = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
TOKENS, INPUTS, TARGETS = 3000, 60, 24


@pytest.fixture
def less_than_float64(monkeypatch):
    """`less_than_float64(has)`: has this machine take itself for one that is slow in float64, or that lacks it."""

    def make(has):
        for module in (moments, solving):
            monkeypatch.setattr(module, "has_float64", lambda _: has)
            monkeypatch.setattr(module, "widest_type", lambda _: torch.float64 if has else torch.float32)
            monkeypatch.setattr(module, "is_quick_in_float64", lambda _: False)

    return make


def fitted(*, precise):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, INPUTS, generator=generator) * torch.logspace(-1, 1, INPUTS)
    noise = torch.randn(TOKENS, TARGETS, generator=generator) * torch.logspace(-1, 2, TARGETS)
    targets = inputs @ torch.randn(INPUTS, TARGETS, generator=generator) + noise
    sums = Moments(INPUTS, TARGETS, precise=precise)
    for index, rows in enumerate(torch.arange(TOKENS).split(100)):
        sums.add(inputs[rows], targets[rows], torch.ones(100), HELD_OUT if index % 4 == 3 else FITTED)
    return sums


def conditioning(sums):
    """Of the worst system that is solved."""
    matrix, energies = sums.inputs.double(), sums.inputs.double().diagonal()
    return float(torch.linalg.cond(matrix + RIDGES[0] * (energies.mean() * energies).sqrt().diag()))


@pytest.mark.parametrize("has", [True, False], ids=["slow", "lacking"])
def test_maps_are_those_of_float64(less_than_float64, has):
    expected = fitted(precise=False)
    matrix, left = expected.solve(RIDGES)
    condition = conditioning(expected)
    assert 100 < condition < 0.01 / ROUNDED
    less_than_float64(has)
    sums = fitted(precise=False)
    found, found_left = sums.solve(RIDGES)
    assert found.dtype == (torch.float64 if has else torch.float32)
    # Products of 100 tokens are float32 here and there, in other blocks; then each solves its own sums.
    tolerance = 10 * condition * ROUNDED
    torch.testing.assert_close(found.double(), matrix, rtol=tolerance, atol=tolerance * float(matrix.abs().max()))
    torch.testing.assert_close(found_left.double(), left, rtol=tolerance, atol=tolerance)


def test_refinement_makes_float64_of_a_float32_factor(less_than_float64):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(200, 80, dtype=torch.float64, generator=generator)
    matrix, products = root.T @ root, torch.randn(80, 5, dtype=torch.float64, generator=generator)
    penalty = matrix.diagonal() * 0.01
    expected = torch.linalg.solve(matrix + penalty.diag(), products)
    less_than_float64(True)
    found = Solver(torch.device("cpu")).solve_sums(Sums(matrix), penalty, products)
    tolerance = 10 * EXACT * float(torch.linalg.cond(matrix))
    assert tolerance < ROUNDED
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_what_a_float32_factor_cannot_tell_is_solved_on_the_host_in_float64(less_than_float64):
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=generator)).Q
    matrix = rotation * torch.logspace(-4, 4, 40, dtype=torch.float64) @ rotation.T
    high = matrix.float()
    pair = Sums(high, (matrix - high).float())
    products = torch.randn(40, 3, generator=generator)
    condition = float(torch.linalg.cond(matrix))
    assert ROUNDED * condition > 1 > 1e3 * EXACT * condition
    less_than_float64(False)
    solver = Solver(torch.device("cpu"))
    assert solver._solve_refined(pair, torch.zeros(40), products) is None
    found = solver.solve_sums(pair, torch.zeros(40), products)
    exact = torch.linalg.solve(matrix, products.double())
    tolerance = 10 * condition * ROUNDED**2 + ROUNDED
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("size", [64, 70])
def test_panels_solve_what_one_factor_solves(size):
    """As where the matrix lies on the host, and comes to the device a few columns at a time."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2 * size, size, dtype=torch.float64, generator=generator)
    matrix, products = root.T @ root, torch.randn(size, 37, dtype=torch.float64, generator=generator)
    penalty = torch.rand(size, dtype=torch.float64, generator=generator)
    solver = Solver(CPU)
    solver._panel = 16
    expected = solver.solve(matrix, penalty, products)
    torch.testing.assert_close(solver._solve_in_panels(matrix, penalty, products), expected)
    torch.testing.assert_close(solver._times(matrix, products), matrix @ products)
    assert not solver._solve_in_panels(matrix - 1e3 * torch.eye(size), penalty, products).any()


def test_pairs_of_float32_hold_sums_that_one_would_lose():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(50, generator=generator) for _ in range(4000)]
    exact = torch.stack(parts).double().sum(dim=0)
    pair, alone = Sums(torch.zeros(50), torch.zeros(50)), torch.zeros(50)
    for part in parts:
        pair.add(part)
        alone += part
    assert float((alone - exact).abs().max() / exact.max()) > 4 * ROUNDED
    assert float(((pair.high.double() + pair.low.double()) - exact).abs().max() / exact.max()) < ROUNDED**1.5
