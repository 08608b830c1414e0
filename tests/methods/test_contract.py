"""What every registered search must keep to, so that a new file in methods/ is tested at once."""

import pytest

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.importance.static import static_scores
from depthcut.methods.budget import Budget
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.types import Provenance, ScoreTable, Unit

PROTECTED = frozenset({Unit(0, "attn"), Unit(5, "ffn")})


@pytest.fixture(scope="module")
def stream():
    model = tiny.model("llama")
    return DecoderStream(model, find_architecture(model.config))


def problem(stream, search, budget):
    samples = tiny.samples(8, 16)
    scores, angular = static_scores(stream, samples)
    source = Provenance(
        source="x", format="directory", digest="0", model_type="llama", num_blocks=tiny.NUM_BLOCKS, dtype="float32"
    )
    return Problem(
        architecture=stream.architecture,
        num_blocks=tiny.NUM_BLOCKS,
        sizes=measure_sizes(stream.model, stream.architecture),
        unit=search.preferred_unit,
        budget=budget,
        protected=PROTECTED,
        scores=ScoreTable(model=source, calibration=samples.description, scores=tuple(scores), angular=angular),
        ablation=Ablation(stream, samples, search.objective) if search.needs == "objective" else None,
    )


@pytest.mark.parametrize("entry", SEARCHES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("budget", [Budget("count", 2), Budget("parameters", 0.7)], ids=str)
def test_a_search_keeps_to_its_budget_and_to_what_is_protected(stream, entry, budget):
    search = entry.make()
    task = problem(stream, search, budget)
    search.check(task)
    path = search.path(task)
    steps = path[: task.num_steps(path)]
    removed = [unit for step in steps for unit in step.remove]
    assert len(removed) == len(set(removed))
    assert task.is_met(removed)
    assert not PROTECTED & {unit for step in path for unit in step.remove}
    if budget.kind == "count":
        assert task.count(removed) == 2
    assert path == search.path(problem(stream, search, budget)), "two runs of one seed must agree"
    assert (search.estimate(task, 8).unit_evaluations > 0) == (search.needs == "objective")
    assert entry.summary
    assert entry.source
