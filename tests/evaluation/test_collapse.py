"""Collapse points: found where they were planted, and none where a curve only grows."""

import math
from random import Random

import pytest

from depthcut.evaluation.collapse import find_collapse


def hinge(num_points, knee, before, after, noise=0.0, seed=0):
    """Damage at 0, 1, ..: one rate up to the knee, another beyond it."""
    random = Random(seed)
    return [before * min(i, knee) + after * max(0, i - knee) + random.gauss(0, noise) for i in range(num_points)]


@pytest.mark.parametrize("knee", [3, 8, 15])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_planted_knee_is_found_with_its_rates_in_any_unit(knee, scale):
    found = find_collapse(range(20), [scale * value for value in hinge(20, knee, 0.02, 0.3)])
    # The plateau cuts the last tenth off and leaves the knee where it is.
    assert found.place == knee
    assert found.rate_before == pytest.approx(0.02 * scale)
    assert found.rate_after == pytest.approx(0.3 * scale)


@pytest.mark.parametrize("seed", range(10))
def test_noise_moves_a_knee_by_a_point_at_most(seed):
    found = find_collapse(range(30), hinge(30, 18, 0.01, 0.2, noise=0.03, seed=seed))
    assert abs(found.place - 18) <= 1


def test_an_accuracy_that_falls_to_chance_and_stays_there_collapses_where_it_begins_to_fall():
    accuracy = [0.46] * 10 + [0.40, 0.33, 0.27] + [0.25] * 12
    assert find_collapse(range(len(accuracy)), [-value for value in accuracy]).place == 9


def test_a_jump_from_one_point_to_the_next_is_a_collapse():
    assert find_collapse(range(12), [0.1] * 7 + [6.0] * 5).place == 6


def test_what_overflows_has_collapsed():
    damage = [*hinge(12, 11, 0.01, 0.0), 0.8, math.inf, math.nan]
    assert find_collapse(range(15), damage).place == 11


@pytest.mark.parametrize(
    "damage",
    [
        [0.1 * i for i in range(20)],
        [0.1 * i**2 for i in range(20)],
        [math.sqrt(i) for i in range(20)],
        [3.0] * 20,
        [-0.1 * i for i in range(20)],
        [0.0, 0.0, 0.0, 0.0, 9.0],
        [],
    ],
    ids=["even", "parabola", "flattening", "constant", "falling", "too few points", "empty"],
)
def test_a_curve_without_a_break_has_no_collapse(damage):
    assert find_collapse(range(len(damage)), damage) is None


@pytest.mark.parametrize("seed", range(20))
def test_noise_on_an_even_curve_is_no_collapse(seed):
    assert find_collapse(range(15), hinge(15, 14, 0.1, 0.0, noise=0.05, seed=seed)) is None


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_collapse(seed):
    assert find_collapse(range(15), hinge(15, 14, 0.0, 0.0, noise=0.05, seed=seed)) is None


def test_unequal_steps_are_measured_by_what_they_remove():
    removed = [0.0, 0.01, 0.02, 0.03, 0.09, 0.15, 0.21, 0.27]
    assert find_collapse(removed, [2 * share for share in removed]) is None
    assert find_collapse(removed, list(range(8))) is None  # it is the first, cheap steps that cost the most
