"""The stages of a run on a model in memory: what the commands find, on the same token ids."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import depthcut
import tiny
from depthcut.model.units import choose_units
from depthcut.run import on_model
from depthcut.types import InputError, Unit

LENGTH, REPAIR_SAMPLES = 32, 64
OPTIONS = tiny.SHORT_RUN | {
    "calibration": "stdlib",
    "calibration_length": LENGTH,
    "repair_samples": REPAIR_SAMPLES,
    "method": "greedy,swap=false",
    "unit": "block",
}
UNITS = tuple(Unit(layer, kind) for layer in range(6) for kind in ("attn", "ffn"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama")


@pytest.fixture(scope="module")
def command(folder):
    """What the whole run finds and makes."""
    return depthcut.prune(str(folder), **OPTIONS)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def ids(folder):
    """Token ids of the run's calibration text."""
    return on_model.tokens(AutoTokenizer.from_pretrained(folder), samples=4, length=LENGTH)


@pytest.fixture(scope="module")
def repair_ids(folder):
    """Those of its repair text."""
    return on_model.tokens(AutoTokenizer.from_pretrained(folder), samples=REPAIR_SAMPLES, length=LENGTH)


def test_stage_by_stage_is_the_run(command, model, ids, repair_ids):
    plan = on_model.search(model, ids, budget=2, method="greedy,swap=false", unit="block")
    assert plan.steps == command.plan.steps
    assert plan.calibration.digest == command.plan.calibration.digest
    pruned = on_model.remove(model, plan.removed)
    repaired, records = on_model.repair(model, pruned, repair_ids)
    assert [record.kept for record in records] == [True]
    assert [record.after for record in records] == [record.after for record in command.repairs]
    for (name, own), (other, of_run) in zip(repaired.named_parameters(), command.model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(own, of_run), name


def test_scores_are_the_commands(command, model, ids, folder):
    table = on_model.score(model, ids)
    assert table.scores == command.scores.scores
    assert table.angular == command.scores.angular
    assert table.model.format == "memory"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert depthcut.score(model, tokenizer, batch_size=4).calibration.num_samples == 16


def test_what_is_compared_is_what_a_run_measures(command, model, folder):
    ids = command_evaluation(folder)
    measured = {(m.model, m.name): m.value for m in on_model.compare(model, command.model, ids)}
    of_run = {(m.model, m.name): m.value for m in command.measurements}
    assert {("dense", "perplexity"), ("pruned", "kl_to_dense"), ("pruned", "draft_acceptance")} <= measured.keys()
    assert measured == {key: of_run[key] for key in measured}


def command_evaluation(folder):
    from depthcut.run.recipe import Recipe
    from depthcut.run.session import find_model, prepare

    recipe = Recipe.build(model=str(folder), **OPTIONS)
    return prepare(recipe, find_model(recipe)).evaluation.input_ids


def test_the_dense_model_stays_as_it_is(model, ids):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = on_model.remove(model, "2-3")
    on_model.repair(model, pruned, ids)
    assert model.config.num_hidden_layers == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_removed_model_saves_and_loads_as_an_ordinary_one(model, ids, tmp_path):
    pruned = on_model.remove(model, "2-3")
    pruned.save_pretrained(tmp_path / "pruned")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert reloaded.config.num_hidden_layers == 4
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, pruned(ids).logits)
    shared = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in shared for parameter in pruned.parameters())


def test_what_was_removed_is_found_by_the_tensors_or_must_be_said(model, ids):
    with torch.no_grad():
        loaded_anew = AutoModelForCausalLM.from_config(on_model.remove(model, "2.attn").config)
    pruned = on_model.remove(model, "2.attn,3")
    records = on_model.repair(model, pruned, ids)[1]
    said = on_model.repair(model, pruned, ids, removed="2.attn,3")[1]
    assert [r.after for r in records] == [r.after for r in said]
    with pytest.raises(InputError, match="shares no tensor with the dense one.*give removed"):
        on_model.repair(model, loaded_anew, ids)


@pytest.mark.parametrize(
    ("names", "one_based", "wanted"),
    [
        ("2-3", False, [(2, "attn"), (2, "ffn"), (3, "attn"), (3, "ffn")]),
        ("3-4", True, [(2, "attn"), (2, "ffn"), (3, "attn"), (3, "ffn")]),
        ([3, 2], False, [(2, "attn"), (2, "ffn"), (3, "attn"), (3, "ffn")]),
        ("4.ffn, 0.attn", False, [(0, "attn"), (4, "ffn")]),
        ("0-2.ffn", False, [(0, "ffn"), (1, "ffn"), (2, "ffn")]),
        ([Unit(5, "ffn")], False, [(5, "ffn")]),
        (Unit(5, "ffn"), False, [(5, "ffn")]),
        (6, True, [(5, "attn"), (5, "ffn")]),
        ((), False, []),
    ],
)
def test_units_as_people_write_them(names, one_based, wanted):
    assert choose_units(names, UNITS, one_based=one_based) == tuple(Unit(*unit) for unit in wanted)


@pytest.mark.parametrize(
    ("names", "one_based"), [("6", False), ("0", True), ("3-2", False), ("1.mixer", False), ("x", True)]
)
def test_units_that_are_not_there(names, one_based):
    first, last = (1, 6) if one_based else (0, 5)
    with pytest.raises(InputError, match=f"cannot remove '{names}': .* write a block \\({first} to {last}\\)"):
        choose_units(names, UNITS, one_based=one_based)


def test_token_ids_that_are_none(model):
    with pytest.raises(InputError, match=r"of the shape \(sequences, length\), not \(5,\)"):
        on_model.score(model, torch.arange(5))
    with pytest.raises(InputError, match="token ids from 0 to 259 were given, and the model knows 0 to 258"):
        on_model.score(model, torch.tensor([[0, 259]]))
