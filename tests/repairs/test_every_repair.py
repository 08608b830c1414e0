"""What every registered repair must keep to, so that a new file in repairs/ is tested at once."""

import json

import pytest
import torch

import tiny
from depthcut.model.architectures import find_architecture
from depthcut.model.precision import write_in
from depthcut.model.stream import DecoderStream
from depthcut.repairs import REPAIRS, Damage, parse_repairs, repair_and_judge
from depthcut.results import Repair
from depthcut.run.recipe import Recipe
from depthcut.surgery import apply
from depthcut.types import Unit

REMOVED = frozenset({Unit(2, "ffn"), Unit(3, "attn")})
LITTLE = {"steps": "2", "batch_size": "4", "learning_rate": "0.01", "rank": "4", "top_k": "8"}
"""What makes a training short."""


class Told(Damage):
    """Damage whose held-out text says what it is told to say of the models that it is asked about, in turn."""

    answers: list[float]

    def judge(self, objective, samples=None):
        return super().judge(objective, samples) if samples is not None else lambda _: self.answers.pop(0)


def little(name):
    """A repair, set so that it is quick where it trains."""
    entry = REPAIRS.find(name)
    if not entry.make().num_sequences:
        return entry.make()
    return entry.set({setting: value for setting, value in LITTLE.items() if setting in entry.settings()})


def damage(cls=Damage):
    model = tiny.model(num_hidden_layers=5)
    write_in(model, torch.bfloat16)
    stream = DecoderStream(model, find_architecture(model.config))
    return cls(stream, REMOVED, tiny.samples(12, 16, 1), tiny.samples(4, 16, 2), 2**30)


def tensors(model):
    return {name: (each, each.detach().clone()) for name, each in model.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("entry", REPAIRS, ids=lambda entry: entry.name)
def test_a_repair_gives_a_copy_that_shares_what_it_leaves_and_can_be_undone(entry):
    method, given = little(entry.name), damage(Told)
    pruned = apply(given.dense.model, given.dense.architecture, REMOVED)
    before = {"dense": tensors(given.dense.model), "pruned": tensors(pruned)}
    object.__setattr__(given, "answers", [2.0, 1.0])
    torch.manual_seed(7)
    repaired, record = repair_and_judge(entry.name, method, given, pruned)
    assert record.kept and repaired is not pruned and repaired is not given.dense.model

    for name, model in (("dense", given.dense.model), ("pruned", pruned)):
        for key, (each, values) in before[name].items():
            assert model.state_dict(keep_vars=True)[key] is each and torch.equal(each, values), f"{name}: {key}"
    assert not repaired.training and not any(parameter.grad is not None for parameter in repaired.parameters())
    known = {each.data_ptr() for each, _ in before["dense"].values()}
    changed = [each for each in repaired.state_dict(keep_vars=True).values() if each.data_ptr() not in known]
    assert changed, "something is repaired"
    originals = before["dense"] | before["pruned"]
    again = [
        key
        for key, each in repaired.state_dict(keep_vars=True).items()
        if key in originals and torch.equal(each, originals[key][1]) and each.data_ptr() not in known
    ]
    # A map that was solved anew may come out as it was.
    assert len(again) <= len(record.units), f"a second time in memory: {again}"
    for each in changed:
        rounded = each.detach().to(torch.bfloat16).to(each.dtype)
        assert torch.equal(each, rounded), "it is of the precision that is written"

    object.__setattr__(given, "answers", [1.0, 2.0])
    torch.manual_seed(8)
    undone, second = repair_and_judge(entry.name, method, given, pruned)
    assert undone is pruned and not second.kept
    assert (second.units, second.curve, second.settings) == (record.units, record.curve, record.settings)
    assert Repair.model_validate(json.loads(record.to_json())) == record


@pytest.mark.parametrize("entry", REPAIRS, ids=lambda entry: entry.name)
def test_two_repairs_of_one_model_are_the_same(entry):
    method, given = little(entry.name), damage()
    pruned = apply(given.dense.model, given.dense.architecture, REMOVED)
    models = [method.repair(given, pruned).model.state_dict() for _ in range(2)]
    assert all(torch.equal(values, models[1][key]) for key, values in models[0].items())


@pytest.mark.parametrize("entry", REPAIRS, ids=lambda entry: entry.name)
def test_a_repair_is_chosen_by_its_name_and_says_how_it_is_judged(entry):
    ((name, method),) = Recipe.build(model="x", remove="2", repair=entry.name).repairs
    assert name == entry.name and method == entry.make()
    assert method.judged_by in ("kl", "loss")
    assert parse_repairs("none") == [] and isinstance(method.num_sequences, int)
