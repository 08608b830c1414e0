"""What every registered objective must keep to, so that a new file in ablation/objectives/ is tested at once."""

import pytest
import torch

import tiny
from depthcut.ablation.objectives import OBJECTIVES, QuestionObjective, asks_questions
from depthcut.methods.budget import Budget
from depthcut.run.recipe import Recipe

POSITIONS, VOCABULARY = 7, 50
ENTRIES = [pytest.param(entry, id=entry.name) for entry in OBJECTIVES]
ON_TEXT = [pytest.param(entry, id=entry.name) for entry in OBJECTIVES if not asks_questions(entry.name)]


@pytest.fixture
def dense():
    return 4 * torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(0))


def value(objective, dense, pruned, targets):
    reference = objective.reference(dense)
    assert all(len(part) == POSITIONS for part in reference)
    assert bool(reference) == objective.needs_dense, "what is not needed is not kept"
    values = objective.at_positions(reference, pruned, targets)
    assert values.shape == (POSITIONS,) and values.dtype == torch.float32 and bool(values.isfinite().all())
    return values


def of_sequence(objective, values):
    return float(objective.of_sequence(values.double().sum()[None], torch.tensor([len(values)]).double())[0])


@pytest.mark.parametrize("entry", ENTRIES)
def test_it_is_least_for_the_dense_output_and_grows_with_the_damage(entry, dense):
    objective, noise = entry.make(), torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    targets = dense.argmax(dim=-1)  # the dense model is sure of the text
    damaged = [of_sequence(objective, value(objective, dense, dense + s * noise, targets)) for s in (0, 0.5, 2, 8)]
    assert damaged == sorted(damaged) and damaged[0] < damaged[-1]
    if objective.needs_dense:
        assert damaged[0] == pytest.approx(0, abs=tiny.ROUNDING**0.5)


@pytest.mark.parametrize("entry", ENTRIES)
def test_positions_do_not_see_each_other_and_extremes_stay_finite(entry, dense):
    objective, pruned = entry.make(), dense.flip(0)
    targets = torch.arange(POSITIONS)
    whole = value(objective, dense, pruned, targets)
    for row in range(POSITIONS):
        at = slice(row, row + 1)
        alone = objective.at_positions(objective.reference(dense[at]), pruned[at], targets[at])
        torch.testing.assert_close(alone, whole[at], atol=tiny.ROUNDING, rtol=2 * tiny.ROUNDING)
    value(objective, 1e4 * dense, -1e4 * dense, targets)


@pytest.mark.parametrize("entry", ON_TEXT)
def test_it_is_chosen_by_its_name_for_a_search_a_ranking_and_a_ceiling(entry):
    for options in ({"objective": entry.name}, {"method": "one-shot", "metric": entry.name}):
        recipe = Recipe.build(model="x", remove="2", **options)
        recipe.check()
        assert recipe.build_search().objective == entry.name and not recipe.asks_questions
    assert Budget.parse(None, None, f"{entry.name}=0.1").objective == entry.name
    assert entry.make().measure


def test_a_setting_is_given_in_every_place_that_takes_an_objective():
    for options in ({"objective": "js,swapped=true"}, {"method": "greedy,objective=js,objective.swapped=true"}):
        assert Recipe.build(model="x", remove="2", **options).build_search().objective == "js,swapped=true"
    assert Budget.parse(None, None, "js,swapped=true=0.1") == Budget("increase", 0.1, "js,swapped=true")
    assert OBJECTIVES.parse("js,swapped=true")[1] == OBJECTIVES.find("js-finercut-code").make()
    assert OBJECTIVES.parse("logit-l2,per_token=true")[1].next_token


@pytest.mark.parametrize("name", [entry.name for entry in OBJECTIVES if asks_questions(entry.name)])
def test_a_question_is_better_the_likelier_its_right_answer(name):
    objective = OBJECTIVES.find(name).make()
    assert isinstance(objective, QuestionObjective)
    right = torch.tensor([False, True, False])
    ahead, behind = (float(objective.of_question(torch.tensor([2.0, nll, 3.0]).double(), right)) for nll in (1.0, 4.0))
    assert ahead < behind
    recipe = Recipe.build(model="x", remove="2", objective=name)
    assert recipe.asks_questions and recipe.repair_source == "auto"
