"""A race must end with the planted best, know what it measured exactly, and spend little on what is clearly behind."""

import math

import pytest
import torch

from depthcut.methods.race import Racer, race
from depthcut.types import Unit

NUM_SEQUENCES = 16
SETS = [frozenset({Unit(layer, "ffn")}) for layer in range(6)]
LEVELS = [0.50, 0.30, 0.29, 0.10, 0.11, 0.90]


class Planted:
    """An ablation of which every value is known; counts the sequences that are asked for."""

    def __init__(self, noise, seed=0, levels=LEVELS, batch_sizes=(1,) * NUM_SEQUENCES):
        self.batch_sizes = list(batch_sizes)
        counts = torch.arange(1, NUM_SEQUENCES + 1, dtype=torch.float64)
        self.weights = counts / counts.sum()
        random = torch.Generator().manual_seed(seed)
        of_text = torch.rand(NUM_SEQUENCES, generator=random, dtype=torch.float64)
        own = noise * torch.randn(len(levels), NUM_SEQUENCES, generator=random, dtype=torch.float64)
        self.values = torch.tensor(levels, dtype=torch.float64)[:, None] + of_text + own
        self.reference = of_text
        self.asked = dict.fromkeys(SETS, 0)

    def per_sequence(self, sets, batches, as_next=False):
        assert as_next
        begin, end = sum(self.batch_sizes[: batches.start]), sum(self.batch_sizes[: batches.stop])
        for removed in sets:
            assert self.asked[removed] == begin, "a racer runs every sequence once, in order"
            self.asked[removed] = end
        return self.values[[SETS.index(removed) for removed in sets], begin:end]

    def mean(self, index):
        return float(((self.values[index] - self.reference) * self.weights).sum())

    def racers(self, noise, **changes):
        first = range(len(self.values))
        alike = torch.ones(NUM_SEQUENCES, dtype=torch.float64)
        return [Racer(SETS[i], 0.3 * alike, noise, 1.0, **changes) for i in first]


def least(racers, weights):
    return min(racers, key=lambda racer: racer.mean(weights))


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_best_wins_for_less_than_half_of_the_work(seed):
    planted = Planted(noise=0.05, seed=seed)
    through = race(planted, planted.racers(0.05), planted.reference, standard_errors=3.0)
    best = min(range(len(SETS)), key=planted.mean)
    winner = least(through, planted.weights)
    assert winner.removed == SETS[best]
    assert winner.mean(planted.weights) == pytest.approx(planted.mean(best), abs=1e-12)
    assert winner.believed.numpy() == pytest.approx((planted.values[best] - planted.reference).numpy(), abs=1e-12)
    assert planted.asked[SETS[5]] == 2 and sum(planted.asked.values()) < 0.5 * len(SETS) * NUM_SEQUENCES


def test_noise_that_hides_the_best_keeps_everybody_in():
    planted = Planted(noise=5.0)
    through = race(planted, planted.racers(5.0), planted.reference, standard_errors=9.0)
    assert [racer.removed for racer in through] == SETS
    assert all(racer.is_through for racer in through)


def test_of_equals_all_stay_and_the_first_is_found():
    planted = Planted(noise=0.0, levels=[0.4, 0.2, 0.2, 0.6, 0.6, 0.6])
    through = race(planted, planted.racers(0.01), planted.reference, standard_errors=1.0)
    assert [racer.removed for racer in through] == SETS[1:3]
    assert least(through, planted.weights).removed == SETS[1]


def test_rates_weigh_what_is_compared():
    planted = Planted(noise=0.01)
    racers = planted.racers(0.01)
    racers[0].rate = 10.0
    through = race(planted, racers, planted.reference, standard_errors=3.0)
    assert [racer.removed for racer in through] == SETS[:1]
    assert through[0].mean(planted.weights) == pytest.approx(planted.mean(0) / 10)


def test_what_stands_is_only_left_for_something_better():
    planted = Planted(noise=0.01)
    zero = torch.zeros(NUM_SEQUENCES, dtype=torch.float64)

    def standing_at(level):
        return Racer(frozenset(), zero + level, 0.0, 0.0, surprises=zero)

    assert not race(planted, planted.racers(0.01), planted.reference, standard_errors=3.0, standing=standing_at(-1.0))
    assert sum(planted.asked.values()) == 2 * len(SETS)
    planted = Planted(noise=0.01)
    through = race(planted, planted.racers(0.01), planted.reference, standard_errors=3.0, standing=standing_at(0.2))
    assert {racer.removed for racer in through} <= {SETS[3], SETS[4]} and through


def test_where_values_are_what_was_believed_nothing_moves_and_where_not_the_rest_follows():
    known = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64)
    racer = Racer(SETS[0], known, 0.1, 1.0)
    racer.see(known[:2])
    assert racer.believed.numpy() == pytest.approx(known.numpy())
    racer = Racer(SETS[0], known, 0.1, 1.0)
    for value in (0.5, 0.3):
        racer.see(torch.tensor([value], dtype=torch.float64))
    # Both sequences came 0.2 higher; what is believed counts for one sequence, so two thirds of that carry over.
    assert racer.believed.tolist() == pytest.approx([0.5, 0.3, 0.2 + 0.4 / 3, 0.4 + 0.4 / 3])


def test_batches_are_run_whole():
    planted = Planted(noise=0.05, batch_sizes=(5, 5, 6))
    through = race(planted, planted.racers(0.05), planted.reference, standard_errors=3.0)
    assert least(through, planted.weights).removed == SETS[min(range(len(SETS)), key=planted.mean)]
    assert set(planted.asked.values()) <= {5, 10, NUM_SEQUENCES}
    assert math.isclose(sum(planted.weights), 1)
