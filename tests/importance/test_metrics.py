"""What every registered metric must keep to, so that a new file in importance/ is tested at once."""

import math

import pytest
import torch

import tiny
from depthcut.importance import METRICS, check_metrics
from depthcut.importance.static import static_scores
from depthcut.methods.one_shot import rank
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.model.units import unit_parameters
from depthcut.run.recipe import Recipe
from depthcut.types import InputError

PLANTED = (1, 4)
ENTRIES = [pytest.param(entry, id=entry.name) for entry in METRICS]


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt_neox", "mamba2"])
def stream(request):
    """A model two blocks of which have no weights but zeros, so that they pass the stream on as it is."""
    model = tiny.model(request.param)
    architecture = find_architecture(model.config)
    with torch.no_grad():
        for unit, weights in unit_parameters(model, architecture).items():
            for weight in weights if unit.layer in PLANTED else ():
                weight.zero_()
    return DecoderStream(model, architecture)


@pytest.fixture(scope="module")
def twice(stream):
    """Every metric of it, two times."""
    names = [entry.name for entry in METRICS]
    before = {name: (each.clone(), each.requires_grad) for name, each in stream.model.named_parameters()}
    passes = [static_scores(stream, tiny.samples(3), 2, also=names) for _ in range(2)]
    for name, each in stream.model.named_parameters():
        kept, flag = before[name]
        assert torch.equal(each, kept) and each.requires_grad == flag and each.grad is None, name
    return passes


@pytest.mark.parametrize("entry", ENTRIES)
def test_planted_identity_blocks_go_first_and_every_unit_has_a_finite_number(stream, twice, entry):
    (found, table), again = twice
    assert (found, table) == again, "two passes must agree"
    for unit, candidates in {
        "block": [tuple(u for u in stream.units if u.layer == layer) for layer in range(tiny.NUM_BLOCKS)],
        "sublayer": [(each,) for each in stream.units],
    }.items():
        name = METRICS.find(entry.name).make()
        scores = next(s for s in found if s.unit == unit and METRICS.parse(s.metric)[1] == name)
        assert list(scores.values) == [str(c[0].layer) if unit == "block" else str(c[0]) for c in candidates]
        assert all(map(math.isfinite, scores.values.values()))
        assert scores.measure == entry.summary
        first = [removal for removal, _ in rank(scores.values, candidates)]
        planted = [removal for removal in candidates if removal[0].layer in PLANTED]
        assert sorted(first[: len(planted)]) == planted
        assert all(scores.values[key] == pytest.approx(0, abs=tiny.ROUNDING) for key in keys(scores, planted))
    assert all(math.isfinite(value) for row in table for value in row)


def keys(scores, removals):
    return [str(r[0].layer) if scores.unit == "block" else str(r[0]) for r in removals]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_metric_is_chosen_by_its_name_and_refused_where_weights_are_not_numbers(entry):
    recipe = Recipe.build(model="x", method="one-shot", metric=entry.name, remove="2")
    recipe.check()
    assert recipe.metrics == (entry.name,)
    quantised = tiny.config("llama", quantization_config={"quant_method": "gptq"})
    if entry.make().reads == "stream":
        check_metrics(recipe.metrics, quantised)
    else:
        with pytest.raises(
            InputError, match=rf"the metric {entry.name} reads weights, which this model stores as gptq"
        ):
            check_metrics(recipe.metrics, quantised)
