"""Greedy searches must find what the naive loop finds, for less, and survive being killed at any moment."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.ablation.objectives.kl import KL
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.latency import measure_latency
from depthcut.model.packing import is_dense, pack
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.process.journal import Journal
from depthcut.types import Latency, Unit

EXHAUSTIVE = Greedy(strategy="exhaustive", swap=False)
LAZY = Greedy()


def engine(family="llama", seed=0, **changes):
    model = tiny.model(family, seed, **changes)
    return DecoderStream(model, find_architecture(model.config))


def problem(stream, unit="sublayer", remove="4", budget=None, journal=None, samples=None, **changes):
    return Problem(
        architecture=stream.architecture,
        num_blocks=len(stream.blocks),
        sizes=measure_sizes(stream.model, stream.architecture),
        unit=unit,
        budget=Budget.parse(None if budget else remove, budget),
        ablation=Ablation(stream, samples or tiny.samples(4, 16), "kl", journal=journal),
        **changes,
    )


def removals(steps):
    return [step.remove for step in steps]


@torch.no_grad()
def naive_path(stream, ids, num_steps):
    """FinerCut's loop with whole forward passes of the model itself."""
    objective = KL()
    dense = stream.model(input_ids=ids, use_cache=False).logits
    references = [objective.reference(row) for row in dense]
    removed, path, forwards = [], [], 0
    for _ in range(num_steps):
        values = {}
        for unit in stream.units:
            if unit in removed:
                continue
            with bypass(stream.model, stream.architecture, [*removed, unit]):
                logits = stream.model(input_ids=ids, use_cache=False).logits
            forwards += 1
            rows = zip(references, logits, ids, strict=True)
            values[unit] = float(
                torch.stack([objective.at_positions(r, z, i).double().mean() for r, z, i in rows]).mean()
            )
        best = min(values, key=values.get)
        removed.append(best)
        path.append((best, values[best]))
    return path


def test_prefix_reuse_gives_the_naive_loops_path_for_half_its_work():
    stream = engine(num_hidden_layers=12)
    samples = tiny.samples(2, 16)
    expected = naive_path(stream, samples.input_ids, 4)
    task = problem(stream, samples=samples)
    calls = []
    for block in stream.blocks:
        for module in (block.self_attn, block.mlp):
            module.register_forward_hook(lambda _, args, kw, out: calls.append(1), with_kwargs=True)
    before = stream.unit_evaluations
    steps = EXHAUSTIVE.path(task)
    assert [step.remove[0] for step in steps] == [unit for unit, _ in expected]
    assert [step.objective for step in steps] == pytest.approx([value for _, value in expected], abs=tiny.ROUNDING)
    num_units = len(stream.units)
    naive = 2 * sum((num_units - i) * (num_units - i - 1) for i in range(4))
    assert len(calls) == stream.unit_evaluations - before
    assert len(calls) <= 0.55 * naive


@pytest.mark.parametrize("unit", ["block", "attn", "ffn", "sublayer", "pair"])
def test_lazy_that_looks_at_everything_is_exhaustive(unit):
    stream = engine()
    everything = replace(LAZY, swap=False, tolerance=99.0, num_racers=99, standard_errors=99.0)
    assert everything.path(problem(stream, unit, "3")) == EXHAUSTIVE.path(problem(stream, unit, "3"))


@pytest.mark.parametrize("search", [EXHAUSTIVE, LAZY, replace(LAZY, objective="js")], ids=["exhaustive", "lazy", "js"])
@pytest.mark.parametrize(
    ("unit", "planted"), [("block", "2.attn 2.ffn"), ("sublayer", "4.ffn"), ("pair", "1.ffn 2.attn")]
)
def test_planted_units_that_do_nothing_go_first(search, unit, planted):
    stream = engine()
    removal = tuple(Unit.parse(name) for name in planted.split())
    with torch.no_grad():
        for part in removal:
            block = stream.blocks[part.layer]
            block.get_submodule(stream.architecture.branches[part.kind].projection).weight.zero_()
    first = search.path(problem(stream, unit, "2"))[0]
    assert first.remove == removal
    assert first.objective == pytest.approx(0, abs=tiny.ROUNDING)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", ["block", "sublayer", "pair"])
def test_exchanges_only_ever_lower_the_objective(seed, unit):
    stream = engine(seed=seed)
    task = problem(stream, unit, "3")
    plain = replace(LAZY, swap=False).path(problem(stream, unit, "3"))
    steps = replace(LAZY, effort=9.0).path(task)
    assert steps[-1].objective <= plain[-1].objective
    removed = frozenset(itertools.chain.from_iterable(removals(steps)))
    assert len(removed) == len(frozenset(itertools.chain.from_iterable(removals(plain))))
    assert steps[-1].objective == task.ablation(removed)


@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_of_a_path_of_pairs_packs_into_whole_blocks(seed):
    stream = engine(seed=seed)
    steps = replace(LAZY, effort=9.0).path(problem(stream, "pair", "4"))
    for count in range(len(steps) + 1):
        removed = {unit for step in steps[:count] for unit in step.remove}
        packed = pack(stream.units, removed, stream.architecture)
        assert is_dense(packed, stream.architecture)
        assert len(packed) == tiny.NUM_BLOCKS - count


def test_a_parameter_budget_is_met_by_the_cheapest_damage_per_parameter():
    stream = engine()
    task = problem(stream, "sublayer", budget="parameters=0.6")
    steps = replace(EXHAUSTIVE, joint=False).path(task)
    removed = {unit for step in steps for unit in step.remove}
    assert task.sizes.parameters_without(removed) <= 0.6 * task.sizes.parameters
    assert not task.is_met(removed - set(steps[-1].remove))
    rates = {c: task.ablation(c) / task.saving(c, ()) for c in task.candidates()}
    assert steps[0].remove == min(rates, key=rates.get)


def test_pairs_go_while_a_whole_one_is_asked_for_and_exchanges_go_by_halves():
    task = problem(engine(), "sublayer", budget="parameters=0.6")
    path = EXHAUSTIVE.path(task)
    sizes = [len(step.remove) for step in path]
    assert sizes == sorted(sizes, reverse=True) and sizes[:2] == [2, 2]
    assert not problem(engine(), "sublayer", budget="parameters=0.6").joint_candidates(
        set(path[0].remove + path[1].remove)
    )
    alone = {pair: task.ablation(pair) for pair in task.joint_candidates()}
    assert path[0].remove == min(alone, key=alone.get)
    task = problem(engine(), "sublayer", budget="parameters=0.75")
    path, refined = (replace(EXHAUSTIVE, swap=swap).path(task) for swap in (False, True))
    removed = {unit for step in refined for unit in step.remove}
    assert task.is_met(removed)
    assert refined[-1].objective == pytest.approx(task.ablation(removed), abs=tiny.ROUNDING)
    assert refined[-1].objective < path[-1].objective
    assert {unit.layer for unit in path[0].remove} == {5} and {unit.layer for unit in refined[0].remove} == {4, 5}
    assert task.joint_candidates() and not replace(task, budget=Budget("count", 4)).joint_candidates()


def test_a_budget_computed_from_pairs_takes_exactly_these_pairs():
    for count in (1, 2, 3):
        pairs = EXHAUSTIVE.path(problem(engine(), "pair", str(count)))
        sizes = problem(engine(), "pair").sizes
        left = sizes.parameters_without({unit for step in pairs for unit in step.remove}) / sizes.parameters
        assert EXHAUSTIVE.path(problem(engine(), "sublayer", budget=f"parameters={left:.17f}")) == pairs


def test_a_kv_budget_removes_attentions_only():
    steps = LAZY.path(problem(engine(), "sublayer", budget="kv=0.6"))
    assert {unit.kind for step in steps for unit in step.remove} == {"attn"}
    assert len(steps) == 3


def test_protected_first_blocks_wait_until_enough_is_gone():
    protecting = replace(EXHAUSTIVE, protected_fraction=0.4)
    steps = protecting.path(problem(engine(), "sublayer", "8"))
    early = [unit.layer >= 0.4 * tiny.NUM_BLOCKS for step in steps[: int(0.4 * 12) + 1] for unit in step.remove]
    assert all(early)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("seed", "effort"), [(0, 0.1), (1, 0.6), (2, 0.8), (3, 1.0)])
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, monkeypatch, seed, effort):
    stream = engine(seed=seed)
    search = replace(LAZY, effort=effort)
    uninterrupted = search.path(problem(stream))
    chance = random.Random(seed)
    path = tmp_path / "journal.jsonl"
    add = Journal.add
    countdown = [0]

    def add_or_die(self, line):
        countdown[0] -= 1
        if countdown[0] == 0:
            if chance.random() < 0.5:
                with self.path.open("a") as file:
                    file.write('{"removed": ["1.at')
            raise Killed
        add(self, line)

    monkeypatch.setattr(Journal, "add", add_or_die)
    kills, evaluated = 0, 0
    while True:
        countdown[0] = chance.randint(1, 7) if kills < 20 else 10**9
        journal = Journal(path, {"objective": "kl"})
        evaluated = max(evaluated, len(journal.lines))
        try:
            steps = search.path(problem(stream, journal=journal))
            break
        except Killed:
            kills += 1
    assert kills == 20
    assert steps == uninterrupted
    lines = [
        (tuple(sorted(line["removed"] + line["candidate"])), line["text"], line["batch"]) for line in journal.lines
    ]
    assert len(lines) == len(set(lines))


def test_two_runs_give_the_same_path():
    assert LAZY.path(problem(engine(), "pair")) == LAZY.path(problem(engine(), "pair"))


def test_under_a_ceiling_the_most_goes_that_held_out_text_allows():
    stream = engine()
    held_out = Ablation(stream, tiny.samples(2, 16, seed=9), "kl")
    task = problem(stream, "sublayer")
    path = EXHAUSTIVE.path(replace(task, budget=Budget("count", 6)))
    values = [held_out({unit for step in path[:count] for unit in step.remove}) for count in range(7)]
    ceiling = (values[3] + values[4]) / 2
    assert values == sorted(values)
    limited = replace(task, budget=Budget.parse(None, None, f"kl={ceiling}"), held_out=held_out)
    found = EXHAUSTIVE.path(limited)
    assert limited.num_steps(found) == 3
    assert removals(found[:3]) == removals(path[:3])
    assert limited.num_steps(path[:3]) == 3
    assert replace(limited, budget=Budget.parse(None, None, "kl=0.0000001")).num_steps(path) == 0


def test_a_latency_budget_weighs_damage_by_measured_time():
    stream = engine()
    latency = Latency(token_seconds=1.0, unit_seconds={"attn": 0.02, "ffn": 0.1})
    task = replace(problem(stream, "sublayer", budget="latency=0.7"), latency=latency)
    steps = EXHAUSTIVE.path(task)
    removed = [unit for step in steps for unit in step.remove]
    saved = sum(latency.unit_seconds[unit.kind] for unit in removed)
    assert saved >= 0.3 - 1e-9
    assert saved - latency.unit_seconds[removed[-1].kind] < 0.3
    rates = {c: task.ablation(c) / latency.unit_seconds[c[0].kind] for c in task.candidates()}
    assert steps[0].remove == min(rates, key=rates.get)


def test_a_units_latency_is_its_share_of_what_bypassing_its_kind_saves(monkeypatch):
    stream = engine()
    contexts = []

    def decode(_, without, context):
        contexts.append(context)
        kinds = {unit.kind for unit in without}
        assert len(without) in (0, tiny.NUM_BLOCKS - 1)
        return {"": 1.0, "attn": 0.7, "ffn": 0.4}["".join(kinds)]

    monkeypatch.setattr("depthcut.model.latency._decode", decode)
    measured = measure_latency(stream, tiny.samples(1, 300).input_ids)
    assert measured.token_seconds == 1.0
    assert measured.unit_seconds == pytest.approx({"attn": 0.3 / 5, "ffn": 0.6 / 5})
    assert {context.shape[1] for context in contexts} == {128}


def test_decoding_is_timed_on_the_model_and_leaves_it_as_it_was():
    stream = engine()
    ids = tiny.samples(1, 16).input_ids
    before = stream.model(input_ids=ids).logits
    measured = measure_latency(stream, ids)
    assert measured.token_seconds > 0
    assert set(measured.unit_seconds) == {"attn", "ffn"}
    assert torch.equal(stream.model(input_ids=ids).logits, before)
