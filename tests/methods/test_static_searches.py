"""Rankings must give the published removal sets from published scores, and keep to budgets and protections."""

import pytest
import torch

import tiny
from depthcut.methods.budget import Budget
from depthcut.methods.contiguous import Contiguous
from depthcut.methods.fixed_order import FixedOrder
from depthcut.methods.one_shot import OneShot, rank
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.model.architectures import PRE_NORM, find_architecture
from depthcut.model.units import sizes_from_config
from depthcut.types import InputError, Provenance, Scores, ScoreTable, TextDescription, Unit

PUBLISHED = {
    "Llama-2-7B": (32, [27, 26, 25, 28, 24, 29, 23, 21, 22]),
    "Llama-2-13B": (40, [33, 31, 32, 30, 29, 34, 28, 35, 27, 26]),
    "Baichuan2-7B": (32, [26, 27, 25, 28, 24, 29, 23, 22, 30]),
    "Baichuan2-13B": (40, [32, 31, 33, 30, 34, 29, 28, 35, 27, 26]),
    "Mistral-7B": (32, [26, 25, 27, 24, 23, 22, 28, 29, 21]),
}


def problem(unit="block", remove="2", budget=None, num_blocks=6, scores=None, **changes):
    config = tiny.config("llama", num_hidden_layers=num_blocks)
    architecture = find_architecture(config)
    return Problem(
        architecture=architecture,
        num_blocks=num_blocks,
        sizes=sizes_from_config(config, architecture, torch.float32),
        unit=unit,
        budget=Budget.parse(remove, budget),
        scores=scores,
        **changes,
    )


def score_table(values, metric="block-influence", unit="block", angular=()):
    provenance = Provenance(
        source="x", format="directory", digest="0", model_type="llama", num_blocks=6, dtype="float32"
    )
    text = TextDescription(source="x", num_samples=1, length=1, seed=0, digest="0")
    scores = Scores(metric=metric, unit=unit, measure="", values=values)
    return ScoreTable(model=provenance, calibration=text, scores=(scores,), angular=angular)


def layers(steps):
    return [[unit.layer for unit in step.remove][0] for step in steps]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_removal_orders_follow_from_ranked_scores(name):
    num_blocks, order = PUBLISHED[name]
    # The papers publish the order of the removed blocks; every other block scored higher.
    values = {str(layer): 0.5 + layer / 100 for layer in range(num_blocks)}
    values |= {str(layer): 0.01 * (place + 1) for place, layer in enumerate(order)}
    task = problem(remove=str(len(order)), num_blocks=num_blocks, scores=score_table(values))
    path = OneShot().path(task)
    assert layers(path)[: task.num_steps(path)] == order
    assert len(path) == num_blocks - 1


def test_llama_2_7b_loses_the_same_set_as_in_three_calibrations():
    assert set(PUBLISHED["Llama-2-7B"][1]) == set(range(21, 30))


def test_equals_are_removed_deeper_first():
    candidates = [(Unit(layer, "attn"),) for layer in range(4)]
    ranked = rank({"0.attn": 1.0, "1.attn": 0.5, "2.attn": 0.5, "3.attn": 2.0}, candidates)
    assert [removal[0].layer for removal, _ in ranked] == [2, 1, 0, 3]


def test_uidl_takes_the_window_of_the_least_distance_for_the_asked_size():
    angular = ((0.1, 0.5, 0.6, 0.7), (0.4, 0.2, 0.3), (0.3, 0.25), (0.05,))
    table = score_table({}, angular=angular)
    for n, start in ((1, 3), (2, 1), (3, 1)):
        (step,) = Contiguous().path(problem(remove=str(n), num_blocks=4, scores=table))
        assert sorted({unit.layer for unit in step.remove}) == list(range(start, start + n))
        assert step.objective == angular[start][n - 1]
    (step,) = Contiguous().path(problem(num_blocks=4, scores=table, protected=frozenset({Unit(1, "ffn")})))
    assert sorted({unit.layer for unit in step.remove}) == [2, 3]


def test_fixed_orders():
    assert layers(FixedOrder("deepest-first").path(problem())) == [4, 3, 2, 1, 0]
    assert layers(FixedOrder("reverse").path(problem())) == [5, 4, 3, 2, 1]
    assert layers(FixedOrder("sequential").path(problem())) == [0, 1, 2, 3, 4]
    shuffled = layers(FixedOrder("random").path(problem(seed=1)))
    assert shuffled == layers(FixedOrder("random").path(problem(seed=1)))
    assert shuffled != layers(FixedOrder("random").path(problem(seed=2)))


@pytest.mark.parametrize(
    ("unit", "remove", "budget", "expected"),
    [
        ("block", "25%", None, 2),
        ("block", "33%", None, 2),
        ("sublayer", "25%", None, 3),
        ("attn", None, "kv=0.7", 2),
        ("block", None, "parameters=0.5", 4),
        ("block", "0", None, 0),
    ],
)
def test_budgets_mark_as_many_steps_as_they_take(unit, remove, budget, expected):
    task = problem(unit=unit, remove=remove, budget=budget)
    path = FixedOrder("sequential").path(task)
    assert task.num_steps(path) == expected
    if budget and budget.startswith("parameters"):
        removed = {u for step in path[:expected] for u in step.remove}
        assert task.sizes.parameters_without(removed) <= 0.5 * task.sizes.parameters
        assert task.sizes.parameters_without(removed - set(path[expected - 1].remove)) > 0.5 * task.sizes.parameters


def test_protected_units_stay():
    protected = frozenset({Unit(4, "attn"), Unit(2, "ffn")})
    assert layers(FixedOrder("reverse").path(problem(protected=protected))) == [5, 3, 1, 0]


@pytest.mark.parametrize(
    ("remove", "budget", "words"),
    [
        (None, None, "exactly one of remove"),
        ("25%", "kv=0.5", "not both"),
        ("100%", None, "something must remain"),
        ("many", None, "25% or a count such as 8"),
        ("2.5", None, "25% or a count such as 8"),
        (None, "speed=2", "parameters=0.8, kv=0.7 or latency=0.8"),
        (None, "kv=1.5", "between 0 and 1"),
    ],
)
def test_bad_amounts_say_what_is_allowed(remove, budget, words):
    with pytest.raises(InputError, match=words):
        Budget.parse(remove, budget)


def test_more_than_there_is_cannot_be_removed():
    with pytest.raises(InputError, match="cannot remove 6 of 6 block units: at most 5 can go"):
        problem(remove="6").check()
    with pytest.raises(InputError, match="at most 4 can go"):
        problem(remove="5", protected=frozenset({Unit(0, "attn"), Unit(1, "attn")})).check()


def test_pairs_are_refused_where_branches_are_parallel():
    architecture = find_architecture(tiny.config("gpt_neox"))
    assert architecture.parallel
    assert not PRE_NORM.parallel
    task = problem(unit="pair")
    with pytest.raises(InputError, match="read the same stream"):
        type(task)(
            **{name: getattr(task, name) for name in ("num_blocks", "sizes", "unit", "budget")},
            architecture=architecture,
        ).check()


def test_unknown_methods_and_metrics_name_the_nearest():
    with pytest.raises(InputError, match="did you mean shortgpt"):
        SEARCHES.find("shortgtp")
    with pytest.raises(InputError, match="did you mean relative-l"):
        OneShot("relativ-l2")
