"""Where not every set of blocks can be written, searches end at one that can: Jamba, and hybrids' last mixers."""

import pytest
import torch

import tiny
from depthcut.methods.budget import Budget
from depthcut.methods.contiguous import Contiguous
from depthcut.methods.fixed_order import FixedOrder
from depthcut.methods.one_shot import OneShot
from depthcut.methods.problem import Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.model.units import sizes_from_config
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.run.session import pose_problem
from depthcut.surgery import can_be_removed
from depthcut.types import InputError, Provenance, Scores, ScoreTable, TextDescription, Unit

BLOCKS = range(tiny.NUM_BLOCKS)


def units(*layers):
    return {Unit(layer, kind) for layer in layers for kind in ("mixer", "ffn")}


def problem(family, order=(), **changes):
    """Whole blocks, two of them; those of `order` are the least important, in that order."""
    config = tiny.config(family)
    architecture = find_architecture(config)
    values = {str(layer): float(order.index(layer) if layer in order else 100 + layer) for layer in BLOCKS}
    text = TextDescription(source="x", num_samples=1, length=1, seed=0, digest="0")
    provenance = Provenance(
        source="x", format="directory", digest="0", model_type=family, num_blocks=6, dtype="float32"
    )
    scores = Scores(metric="block-influence", unit="block", measure="", values=values)
    # Of windows of two the second is the closest in angle, then the third.
    angular = tuple(tuple(abs(start - 2.1) + length for length in range(6 - start)) for start in BLOCKS)
    return Problem(
        architecture=architecture,
        num_blocks=6,
        sizes=sizes_from_config(config, architecture, torch.float32),
        unit="block",
        budget=Budget.parse("2", None),
        scores=ScoreTable(model=provenance, calibration=text, scores=(scores,), angular=angular),
        allows=lambda removed: can_be_removed(config, architecture, removed),
        **changes,
    )


def prefixes(path):
    return [{unit for step in path[: count + 1] for unit in step.remove} for count in range(len(path))]


def test_a_ranking_takes_the_next_that_can_be_written():
    """Jamba's attentions stand at 1 and 4, its experts at 1, 3 and 5: the two least important cannot both go."""
    task = problem("jamba", order=(2, 4, 3, 0, 5, 1))
    assert not task.allows(units(2)) and not task.allows(units(2, 4)) and task.allows(units(0))
    path = OneShot().path(task)
    assert task.num_steps(path) == 2
    assert all(task.allows(removed) for removed in prefixes(path))
    # Each as soon as it can go, the least important first.
    assert prefixes(path)[0] == units(next(layer for layer in (2, 4, 3, 0, 5, 1) if task.allows(units(layer))))


@pytest.mark.parametrize("order", ["deepest-first", "sequential", "reverse", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_orders_too(order, seed):
    task = problem("jamba", seed=seed)
    path = FixedOrder(order).path(task)
    assert task.num_steps(path) == 2 and all(map(task.allows, prefixes(path)))


def test_a_window_that_cannot_be_written_is_none():
    task = problem("jamba")
    assert not task.allows(units(2, 3))
    (step,) = Contiguous().path(task)
    assert task.allows(step.remove) and len(step.remove) == 4


def test_a_hybrid_keeps_a_mixer_of_each_kind():
    """Attentions stand at 1 and 4 and are the least important: one stays."""
    task = problem("lfm2", order=(1, 4))
    assert prefixes(OneShot().path(task))[1] == units(1, 0)


def test_where_every_set_can_be_written_nothing_changes():
    task = problem("jamba", order=(5, 3, 1, 0, 2, 4))
    free = problem("jamba", order=(5, 3, 1, 0, 2, 4), **{})
    object.__setattr__(free, "allows", lambda _: True)
    assert [step.remove[0].layer for step in OneShot().path(free)] == [5, 3, 1, 0, 2]
    assert task.in_turn([(Unit(5, "ffn"),)]) == [(Unit(5, "ffn"),)]


def test_exchanges_are_refused_before_weights_load(tmp_path):
    source = resolve(str(tiny.save(tmp_path / "dense", "jamba")))
    with pytest.raises(InputError, match="evopress exchanges .* without 1.mixer, 1.ffn alone; .* use greedy"):
        pose_problem(Recipe.build(model=str(source.folder), method="evopress", remove="2"), source)


def test_the_greedy_search_of_a_run_ends_at_a_set_that_is_written(tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    folder = tiny.save(tmp_path / "dense", "jamba")
    options = tiny.SHORT_RUN | {"unit": "block", "repair": "none"}
    result = prune_model(Recipe.build(model=str(folder), **options), tmp_path / "out")
    assert len(result.plan.removed) == 4
    assert resolve(str(tmp_path / "out")).provenance.num_blocks == 4
