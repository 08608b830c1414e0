"""Estimates must agree with the exact Shapley values of a model small enough for all subsets, and with shapiq's."""

import itertools
import math
import statistics

import pytest
import shapiq
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.importance.shapley import _rises as rises
from depthcut.importance.shapley import _walk as walk
from depthcut.importance.shapley import leave_one_out, permutation, random_subsets, value_of, values_of_batches
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.process.journal import Journal
from depthcut.types import InputError, Unit

NO_OP = Unit(1, "ffn")


@pytest.fixture(scope="module")
def stream():
    """Three blocks, six units."""
    model = tiny.model(num_hidden_layers=3)
    return DecoderStream(model, find_architecture(model.config))


@pytest.fixture(scope="module")
def stream_with_no_op():
    """The same, but one unit adds nothing."""
    model = tiny.model(num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[NO_OP.layer].mlp.down_proj.weight.zero_()
    return DecoderStream(model, find_architecture(model.config))


@pytest.fixture(scope="module")
def players(stream):
    return [(unit,) for unit in stream.units]


@pytest.fixture(scope="module")
def table(stream):
    """The objective of every subset."""
    ablation = Ablation(stream, tiny.samples(4), "kl", batch_size=4)
    sets = [frozenset(c) for size in range(7) for c in itertools.combinations(stream.units, size)]
    return dict(zip(sets, ablation.evaluate(sets), strict=True))


def exact(players, value):
    """By definition: the mean over all orders."""
    total = [0.0] * len(players)
    orders = list(itertools.permutations(range(len(players))))
    for order in orders:
        for place, rise in enumerate(rises(order, [value(removed) for removed in walk(players, order)])):
            total[place] += rise
    return [sum_ / len(orders) for sum_ in total]


def test_exact_values_are_those_of_shapiq(players, table):
    def game(coalitions):
        return [
            table[frozenset(player[0] for player, gone in zip(players, row, strict=True) if gone)] for row in coalitions
        ]

    class OurGame(shapiq.Game):
        def value_function(self, coalitions):
            return torch.tensor(game(coalitions), dtype=torch.float64).numpy()

    ours = OurGame(n_players=len(players), normalize=True, normalization_value=table[frozenset()])
    values = shapiq.ExactComputer(ours, n_players=len(players))("SV", 1)
    expected = [values[(place,)] for place in range(len(players))]
    assert exact(players, table.__getitem__) == pytest.approx(expected, abs=1e-12)


def test_permutation_estimates_meet_the_exact_values_within_two_standard_errors(players, table):
    expected = exact(players, table.__getitem__)
    hits = []
    for seed in range(20):
        found = permutation(players, table.__getitem__, target_share=0, max_pairs=100, seed=seed)
        hits += [
            abs(value - true) <= 2 * error
            for value, error, true in zip(found.values, found.standard_errors, expected, strict=True)
        ]
    assert len(hits) == 120
    assert statistics.mean(hits) >= 0.95


def test_every_order_shares_out_exactly_what_is_lost_in_all(players, table):
    whole = table[frozenset(player[0] for player in players)] - table[frozenset()]
    for order in itertools.permutations(range(6)):
        parts = rises(order, [table[removed] for removed in walk(players, order)])
        assert math.fsum(parts) == pytest.approx(whole, abs=1e-12)
    found = permutation(players, table.__getitem__, max_pairs=3)
    assert math.fsum(found.values) == pytest.approx(whole, abs=1e-12)


def test_a_unit_that_adds_nothing_has_no_importance_and_no_error(stream_with_no_op, players):
    value = value_of(Ablation(stream_with_no_op, tiny.samples(2), "kl"))
    found = permutation(players, value, max_forwards=50).scores("shapley", "sublayer", "nats per token")
    assert found.values[str(NO_OP)] == found.standard_errors[str(NO_OP)] == 0
    assert min(error for name, error in found.standard_errors.items() if name != str(NO_OP)) > 0
    assert leave_one_out(players, value).scores("x", "sublayer", "").values[str(NO_OP)] == 0


def test_sets_are_evaluated_exactly_and_for_less_than_whole_passes(stream, players, table):
    samples = tiny.samples(4)
    ablation = Ablation(stream, samples, "kl", batch_size=4)
    evaluated = []

    def value(removed):
        evaluated.append(removed)
        return value_of(ablation)(removed)

    before = stream.unit_evaluations
    found = permutation(players, value, max_forwards=30, target_share=0)
    assert found == permutation(players, table.__getitem__, max_forwards=30, target_share=0)
    whole_passes = 4 * sum(6 - len(removed) for removed in evaluated)
    assert stream.unit_evaluations - before < 0.75 * whole_passes


def test_blocks_as_players_are_named_by_block(stream):
    blocks = [tuple(unit for unit in stream.units if unit.layer == layer) for layer in range(3)]
    value = value_of(Ablation(stream, tiny.samples(2), "kl"))
    scores = permutation(blocks, value, max_forwards=20).scores("shapley", "block", "nats per token")
    assert list(scores.values) == ["0", "1", "2"]
    assert list(scores.values.values()) == pytest.approx(exact(blocks, value), rel=0.3)
    assert scores.measure == "nats per token; 8 forward passes"


@pytest.mark.parametrize("max_forwards", [22, 23, 31, 40])
def test_the_budget_in_forward_passes_is_kept(stream, players, max_forwards):
    ablation = Ablation(stream, tiny.samples(2), "kl")
    found = permutation(players, value_of(ablation), max_forwards=max_forwards, target_share=0)
    assert found.forwards == ablation.candidate_evaluations <= max_forwards
    assert found.forwards > max_forwards - 10


def test_sampling_ends_when_the_errors_are_small_enough(players, table):
    calls = []

    def value(removed):
        calls.append(removed)
        return table[removed]

    rough = permutation(players, value, target_share=0.2)
    fine = permutation(players, table.__getitem__, target_share=0.02)
    mean = statistics.mean(map(abs, rough.values))
    assert max(rough.standard_errors) <= 0.2 * mean
    assert max(fine.standard_errors) <= 0.02 * statistics.mean(map(abs, fine.values))
    assert len(calls) == len(set(calls)) == rough.forwards


def test_too_small_a_budget_is_refused(players, table):
    with pytest.raises(InputError, match="21 forward passes are too few .* at least 22 with max-forwards"):
        permutation(players, table.__getitem__, max_forwards=21)
    with pytest.raises(InputError, match="takes 7 forward passes, more than the 6"):
        leave_one_out(players, table.__getitem__, max_forwards=6)
    with pytest.raises(InputError, match="random sub-networks are too few"):
        random_subsets(players, [table.__getitem__], num_subsets=2)


def test_the_seed_decides(players, table):
    runs = [permutation(players, table.__getitem__, max_forwards=40, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_journal_resumes_without_repeating_and_with_the_same_result(stream, players, tmp_path):
    def run():
        journal = Journal(tmp_path / "journal.jsonl", {"objective": "kl"})
        ablation = Ablation(stream, tiny.samples(2), "kl", journal=journal)
        return permutation(players, value_of(ablation), max_forwards=40), ablation

    whole, _ = run()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]))
    resumed, ablation = run()
    assert resumed == whole
    assert 2 * ablation.candidate_evaluations == len(lines) - len(lines) // 2


def test_leave_one_out_ranks_as_a_direct_loop(stream, players):
    ablation = Ablation(stream, tiny.samples(2), "loss")
    found = leave_one_out(players, value_of(ablation))
    fresh = Ablation(stream, tiny.samples(2), "loss")
    direct = [fresh(player) - fresh([]) for player in players]
    assert list(found.values) == direct
    assert found.forwards == 7


def test_random_subsets_compute_the_published_formula(players, table):
    seen = []

    def value(removed):
        seen.append(removed)
        return table[removed]

    found = random_subsets(players, [value, value], num_subsets=12, seed=3)
    assert len(seen) == 24
    assert {len(removed) for removed in seen} == {3}
    for player, importance in zip(players, found.values, strict=True):
        absent = [table[removed] for removed in seen if player[0] in removed]
        present = [table[removed] for removed in seen if player[0] not in removed]
        assert importance == pytest.approx(statistics.mean(absent) - statistics.mean(present), abs=1e-12)
    assert found.forwards == 12


def test_random_subsets_keep_the_asked_share_and_differ_between_batches(stream, players):
    ablation = Ablation(stream, tiny.samples(4), "kl", batch_size=2)
    seen = [[], []]

    def watched(place, value):
        return lambda removed: seen[place].append(removed) or value(removed)

    parts = [watched(place, value) for place, value in enumerate(values_of_batches(ablation))]
    found = random_subsets(players, parts, num_subsets=20, keep_fraction=0.9, seed=0)
    assert {len(removed) for part in seen for removed in part} == {1}
    assert len({tuple(part) for part in seen}) == 2
    assert ablation.candidate_evaluations <= found.forwards == 20
