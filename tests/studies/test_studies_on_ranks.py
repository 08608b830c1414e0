"""Rank correlation against its definition, with equal values and where there is none."""

import pytest

from depthcut.studies.ranks import ranks, spearman


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks([3.0, 1.0, 3.0, 2.0, 3.0]).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_without_equal_values_it_is_the_formula_of_squared_rank_differences():
    first, second = [0.1, 5.0, 2.0, 9.0, 4.0], [10.0, 30.0, 50.0, 40.0, 20.0]
    squares = sum((a - b) ** 2 for a, b in zip([1, 4, 2, 5, 3], [1, 3, 5, 4, 2], strict=True))
    assert spearman(first, second) == pytest.approx(1 - 6 * squares / (5 * 24))


def test_only_the_order_counts():
    values = [0.3, 0.1, 7.0, 2.0]
    assert spearman(values, [value**3 for value in values]) == pytest.approx(1)
    assert spearman(values, [-value for value in values]) == pytest.approx(-1)


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_there_is_none_for_two_values_or_one_that_never_changes(first, second):
    assert spearman(first, second) is None
