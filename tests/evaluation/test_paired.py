"""Paired errors against calculations by hand and against draws from a known distribution."""

import math

import numpy as np
import pytest

from depthcut.evaluation.paired import (
    averaged,
    bootstrap,
    chance_level,
    dense_score,
    difference,
    other_score,
    retained,
    stratum,
)

DENSE = [1, 1, 0, 1]
OTHER = [1, 0, 0, 0]


def test_a_paired_difference_by_hand():
    pair = [stratum(DENSE, OTHER)]
    assert (dense_score(pair).value, other_score(pair).value) == (0.75, 0.25)
    found = difference(pair)
    # The differences 0 -1 0 -1 have mean -1/2 and squared deviations of 1/4 each: variance 1/3, over four items 1/12.
    assert found.value == -0.5
    assert found.stderr == pytest.approx(math.sqrt(1 / 12))
    assert dense_score(pair).stderr == pytest.approx(0.25)


def test_models_that_agree_on_every_item_differ_by_exactly_nothing():
    found = difference([stratum(DENSE, DENSE)])
    assert (found.value, found.stderr) == (0, 0)


def test_one_item_has_no_standard_error():
    assert difference([stratum([1], [0])]).stderr is None


def test_strata_weigh_as_told_and_their_errors_add_as_squares():
    first, second = stratum(DENSE, OTHER), stratum([0.0, 1.0], [1.0, 1.0])
    found = difference(averaged([[first], [second]]))
    alone = [difference([part]) for part in (first, second)]
    assert found.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert found.stderr == pytest.approx(math.hypot(alone[0].stderr, alone[1].stderr) / 2)


def test_the_share_above_chance_by_hand():
    pair = [stratum(DENSE * 25, OTHER * 25, [0.25] * 100)]
    assert chance_level(pair) == 0.25
    # Half of the items above chance for the dense model, none for the other.
    assert retained(pair).value == pytest.approx(0.0)
    better = retained([stratum(DENSE * 25, [1, 1, 0, 0] * 25, [0.25] * 100)])
    assert better.value == pytest.approx(0.5)


def test_a_dense_model_at_chance_has_nothing_to_retain():
    assert retained([stratum([1, 0, 0, 0], [0, 0, 0, 1], [0.25] * 4)]) is None


def test_the_error_of_a_share_is_that_of_repeated_experiments():
    generator = np.random.default_rng(0)

    def experiment():
        dense = generator.random(400) < 0.7
        other = np.where(generator.random(400) < 0.8, dense, generator.random(400) < 0.5)
        return retained([stratum(dense, other, [0.25] * 400)])

    found = [experiment() for _ in range(400)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.1)


def test_the_bootstrap_of_a_mean_is_the_closed_form():
    generator = np.random.default_rng(1)
    dense = generator.random(60)
    other = dense + generator.normal(0.1, 0.05, 60)
    drawn = bootstrap(list(dense), list(other), lambda items: sum(items) / len(items))
    pair = [stratum(dense, other)]
    for found, closed in zip(drawn, (dense_score(pair), other_score(pair), difference(pair)), strict=True):
        assert found.value == pytest.approx(closed.value)
        assert found.stderr == pytest.approx(closed.stderr, rel=0.1)


def test_the_bootstrap_is_repeatable_and_pairs_the_items():
    dense = [(-3.0, 2), (-8.0, 4), (-1.0, 1), (-9.0, 6)]

    def perplexity(items):
        return math.exp(-sum(score for score, _ in items) / sum(words for _, words in items))

    first, again = (bootstrap(dense, dense, perplexity) for _ in range(2))
    assert first == again
    assert (first[2].value, first[2].stderr) == (0, 0)
    assert first[0].stderr > 0
