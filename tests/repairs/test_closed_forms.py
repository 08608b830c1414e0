"""Closed forms find what was planted, agree with a reference solver, help every family, and leave their inputs."""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import tiny
from depthcut.calibration import Samples
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.architectures import find_architecture
from depthcut.model.bypass import Emulation, RemovedFFN, remove_branch
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, Repaired, parse_repairs, repair_and_judge
from depthcut.repairs import moments as moments_module
from depthcut.repairs.emulate import Bias, LowRank
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments
from depthcut.repairs.refit import LinearMap, Refit, _most_gain
from depthcut.surgery import apply, twin
from depthcut.types import InputError, Unit

FFN = frozenset({Unit(3, "ffn")})
PAIR = frozenset({Unit(2, "ffn"), Unit(3, "attn")})
BLOCK = frozenset({Unit(2, "attn"), Unit(2, "ffn")})
NO_RIDGE = (1e-12,)


def damage(model, removed, **changes):
    stream = DecoderStream(model, find_architecture(model.config))
    text, held_out = tiny.samples(32, 24), tiny.samples(6, 24, seed=5)
    return Damage(stream, frozenset(removed), text, held_out, 2**30, **changes)


def held_out_kl(given, model):
    return given.judge("kl")(model)


def cut(given):
    return apply(given.dense.model, given.dense.architecture, given.removed)


@torch.no_grad()
def with_linear_ffn(rank):
    """A model whose FFN 3 is a map of the stream of that rank and a constant."""
    model = tiny.model()
    generator = torch.Generator().manual_seed(1)
    emulation = Emulation(32, rank)
    for parameter in emulation.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    architecture = find_architecture(model.config)
    remove_branch(model.model.layers[3], architecture.branches["ffn"], "ffn", 3, emulation)
    return model


@torch.no_grad()
def with_map_of_last_attention(channels=8):
    """A model whose FFN 3 is a linear map of channels of the stream that attention 3 alone writes to."""
    model = tiny.model()
    model.model.embed_tokens.weight[:, :channels] = 0
    for layer in model.model.layers[:4]:
        layer.mlp.down_proj.weight[:channels] = 0
        if layer is not model.model.layers[3]:
            layer.self_attn.o_proj.weight[:channels] = 0
    emulation = Emulation(32, channels)
    generator = torch.Generator().manual_seed(1)
    emulation.down.copy_(torch.eye(channels, 32))
    emulation.up.copy_(torch.randn(32, channels, generator=generator))
    remove_branch(model.model.layers[3], find_architecture(model.config).branches["ffn"], "ffn", 3, emulation)
    return model


@torch.no_grad()
def test_a_planted_low_rank_map_and_its_constant_are_found():
    given = damage(with_linear_ffn(rank=3), FFN)
    repaired = LowRank(rank=3, ridges=NO_RIDGE).repair(given, cut(given))
    planted = given.dense.model.model.layers[3].mlp.emulation
    found = repaired.model.model.layers[3].mlp.emulation
    torch.testing.assert_close(found.up @ found.down, planted.up @ planted.down, atol=tiny.ROUNDING, rtol=tiny.ROUNDING)
    torch.testing.assert_close(found.bias, planted.bias, atol=tiny.ROUNDING, rtol=tiny.ROUNDING)
    assert repaired.units["3.ffn"] == pytest.approx(0, abs=tiny.ROUNDING)
    too_few = LowRank(rank=2, ridges=NO_RIDGE).repair(given, cut(given))
    assert too_few.units["3.ffn"] > 0.01


@torch.no_grad()
def test_a_planted_constant_is_found():
    given = damage(with_linear_ffn(rank=0), FFN)
    repaired = Bias().repair(given, cut(given))
    planted = given.dense.model.model.layers[3].mlp.emulation.bias
    torch.testing.assert_close(
        repaired.model.model.layers[3].mlp.emulation.bias, planted, atol=tiny.ROUNDING, rtol=tiny.ROUNDING
    )
    assert held_out_kl(given, repaired.model) < tiny.ROUNDING


@pytest.mark.parametrize("repair", [LinearMap(ridges=NO_RIDGE), Refit(reads=False, ahead=False, ridges=NO_RIDGE)])
@torch.no_grad()
def test_a_planted_map_of_what_the_last_projection_wrote_is_folded_into_it(repair):
    given = damage(with_map_of_last_attention(), FFN)
    repaired = repair.repair(given, cut(given))
    dense = given.dense.model
    emulation = dense.model.layers[3].mlp.emulation
    expected = dense.model.layers[3].self_attn.o_proj.weight
    expected = expected + emulation.up @ emulation.down @ expected
    found = repaired.model.model.layers[3].self_attn.o_proj.weight
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert repaired.units["3.attn"] == pytest.approx(0, abs=tiny.ROUNDING)
    assert held_out_kl(given, cut(given)) > 1e-3
    assert held_out_kl(given, repaired.model) < tiny.ROUNDING


@pytest.mark.parametrize("block", [3, 192])
def test_moments_solve_least_squares(block, monkeypatch):
    """Also where the symmetric moments come from several blocks, which mirror each other."""
    monkeypatch.setattr(moments_module, "BLOCK", {"cpu": block})
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    targets = torch.randn(200, 4, generator=generator, dtype=torch.float64) + inputs @ torch.randn(7, 4).double()
    weights = torch.rand(200, generator=generator, dtype=torch.float64)
    moments = Moments(7, 4)
    for begin in range(0, 200, 50):
        rows = slice(begin, begin + 50)
        moments.add(inputs[rows], targets[rows], weights[rows], HELD_OUT if begin == 150 else FITTED)
    found, _ = moments.solve([1e-14])
    root = weights.sqrt()[:, None]
    expected = torch.linalg.lstsq(root * inputs, root * targets).solution.T
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_ridges_agree_with_lstsq_of_the_augmented_system():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(60, width, generator=generator, dtype=torch.float64) for width in (5, 3))
    inputs[:, 0] *= 10
    moments = Moments(5, 3)
    # Held out is what was fitted, so that the smallest ridge, the only one given, always helps.
    for part in (FITTED, HELD_OUT):
        moments.add(inputs, targets, torch.ones(60), part)
    found, left = moments.solve([0.3])
    energy = 2 * inputs.square().sum(dim=0)
    penalty = 0.3 * (energy.mean() * energy).sqrt()
    augmented = torch.cat([inputs, inputs, penalty.sqrt().diag()])
    expected = torch.linalg.lstsq(augmented, torch.cat([targets, targets, torch.zeros(5, 3)])).solution.T
    torch.testing.assert_close(found, expected)
    assert bool((left <= 1).all())


def test_every_output_takes_the_ridge_at_which_its_held_out_error_turns():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 12, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 12).double()
    targets = inputs @ torch.randn(20, 12, generator=generator, dtype=torch.float64) + noise
    ridges, fitted, held_out = [0.01, 0.1, 1.0, 10.0], slice(0, 40), slice(40, 60)
    exact, rounded = Moments(20, 12), Moments(20, 12, precise=False)
    for moments in (exact, rounded):
        for part, rows in ((FITTED, fitted), (HELD_OUT, held_out)):
            moments.add(inputs[rows], targets[rows], torch.ones(60)[rows], part)
    energy = inputs.square().sum(dim=0)

    def solved(rows, columns, ridge):
        share = inputs[rows].square().sum() / energy.sum() if rows == fitted else 1.0
        penalty = ridge * share * (energy.mean() * energy).sqrt()
        augmented = torch.cat([inputs[rows], penalty.sqrt().diag()])
        zeros = torch.zeros(20, len(columns), dtype=torch.float64)
        return torch.linalg.lstsq(augmented, torch.cat([targets[rows][:, columns], zeros])).solution

    found, left = exact.solve(ridges)
    kinds = set()
    for column in range(12):
        error, chosen = float(targets[held_out, column].square().sum()), None
        before = error
        for ridge in reversed(ridges):
            tried = inputs[held_out] @ solved(fitted, [column], ridge) - targets[held_out][:, [column]]
            if float(tried.square().sum()) >= error:
                break
            error, chosen = float(tried.square().sum()), ridge
        kinds.add(chosen)
        everything = slice(0, 60)
        expected = torch.zeros(20, 1).double() if chosen is None else solved(everything, [column], chosen)
        torch.testing.assert_close(found[column], expected[:, 0])
        assert float(left[column]) == pytest.approx(error / before)
    assert len(kinds) > 2
    # What float32 rounds is nothing beside such ridges.
    torch.testing.assert_close(rounded.solve(ridges)[0], found, atol=1e-4, rtol=1e-4)


def test_an_output_that_nothing_predicts_stays_as_it_is():
    generator = torch.Generator().manual_seed(0)
    inputs, noise = torch.randn(40, 20, generator=generator), torch.randn(80, 1, generator=generator)
    moments = Moments(20, 2)
    for part, rows in ((FITTED, slice(0, 40)), (HELD_OUT, slice(40, 80))):
        targets = torch.cat([inputs[:, :1], noise[rows]], dim=1)
        moments.add(inputs, targets, torch.ones(40), part)
    found, left = moments.solve([1e-6])
    assert left.tolist() == [pytest.approx(0, abs=1e-6), 1]
    assert bool((found[1] == 0).all()) and found[0, 0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
def test_refit_helps_every_family_and_changes_neither_model_it_was_given(family):
    model = tiny.model(family)
    removals = tiny.removals(find_architecture(model.config))
    given = damage(model, removals.get("pair", removals["block"]))
    pruned = cut(given)
    before = [tensor.clone() for given_model in (model, pruned) for tensor in given_model.parameters()]
    repaired, record = repair_and_judge("refit", Refit(), given, pruned)
    assert record.kept and record.after < 0.9 * record.before
    assert repaired.config.to_dict() == pruned.config.to_dict()
    assert {n: p.shape for n, p in repaired.named_parameters()} == {n: p.shape for n, p in pruned.named_parameters()}
    after = [tensor for given_model in (model, pruned) for tensor in given_model.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("repair", [Bias(), LowRank(rank=4), LinearMap(), Refit()])
def test_sublayers_gone_alone_are_repaired_too(family, repair):
    removed = {Unit(0, "attn"), Unit(2, "ffn"), Unit(4, "attn")}
    given = damage(tiny.model(family), removed)
    record = repair_and_judge("it", repair, given, cut(given))[1]
    assert record.after < record.before


def test_no_text_is_run_through_a_dense_unit_twice(monkeypatch):
    """What a projection aims at behind a removed run is what the next sublayer is fitted to."""
    given = damage(tiny.model(), PAIR, batch_size=32)
    spans, run = [], given.dense.run_together

    def spy(passes):
        spans.extend((each.start, each.stop) for each in passes if each.stop is not None)
        return run(passes)

    monkeypatch.setattr(given.dense, "run_together", spy)
    Refit().repair(given, cut(given))
    assert len(spans) > 2
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_a_step_that_led_nowhere_is_not_shortened():
    before = torch.full((4,), 0.5).double()
    # All positions lose alike: half of the step would lose half.
    assert _most_gain(0.5, torch.full((4,), -0.01).double(), before) == pytest.approx(-0.005)
    # Positions gain and lose much: the step was too long, and half of it may help.
    assert _most_gain(0.5, torch.tensor([0.2, -0.2, 0.2, -0.2]).double(), before) > 0.05


def test_refit_makes_up_for_the_first_block_too():
    """Nothing stands before it; what comes after reads another stream, and is refitted."""
    given = damage(tiny.model(), {Unit(0, "attn"), Unit(0, "ffn")})
    record = repair_and_judge("refit", Refit(), given, cut(given))[1]
    assert record.after < 0.97 * record.before
    assert record.units


@pytest.mark.parametrize("repair", [Bias(), LowRank(rank=4), LinearMap(), Refit()])
@torch.no_grad()
def test_pads_and_batching_change_nothing(repair):
    given = damage(tiny.model(), PAIR)
    text = given.text
    padding = torch.zeros(len(text.input_ids), 5, dtype=torch.long)
    padded = Samples(
        torch.cat([text.input_ids, padding], dim=1),
        torch.cat([text.attention_mask, padding], dim=1),
        text.description,
        text.document_digests,
    )
    plain = repair.repair(given, cut(given)).model
    for changed in (replace(given, text=padded), replace(given, batch_size=3), replace(given, memory_budget=0)):
        other = repair.repair(changed, cut(given)).model
        for (name, expected), (_, found) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma3_text", "gpt2", "gpt_neox"])
@pytest.mark.usefixtures("read_afresh")
@torch.no_grad()
def test_emulations_are_saved_and_reloaded(family, tmp_path):
    tiny.save(tmp_path / "dense", family)
    source = resolve(str(tmp_path / "dense"))
    given = damage(source.load_model("cpu"), {Unit(0, "attn"), Unit(2, "ffn")})
    repaired = LowRank(rank=3).repair(given, cut(given)).model
    (tmp_path / "repaired").mkdir()
    write_directory(repaired, tiny.tokenizer(), tmp_path / "repaired")
    ids = given.held_out.input_ids[:1]
    verify_directory(tmp_path / "repaired", repaired, ids)
    loaded = resolve(str(tmp_path / "repaired")).load_model("cpu")
    assert torch.equal(loaded(input_ids=ids).logits, repaired(input_ids=ids).logits)
    assert not torch.equal(repaired(input_ids=ids).logits, cut(given)(input_ids=ids).logits)


def test_emulations_of_parallel_branches_and_scaled_ones_add_what_was_removed():
    model = tiny.model("granite")
    given = damage(model, FFN)
    emulation = Bias().repair(given, cut(given)).model.model.layers[3].mlp.emulation
    batch = given.dense.prepare(given.text.input_ids)
    added = {}
    with torch.no_grad():
        given.dense.run(batch, visit=lambda unit, before, after: added.update({unit: (after - before).mean((0, 1))}))
    torch.testing.assert_close(model.config.residual_multiplier * emulation.bias, added[Unit(3, "ffn")])


@dataclass(frozen=True)
class Harm:
    """Doubles an output projection."""

    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture, config):
        pass

    def repair(self, damage, pruned):
        harmed = twin(pruned)
        projection = harmed.model.layers[0].mlp.down_proj
        projection.weight = nn.Parameter(2 * projection.weight, requires_grad=False)
        return Repaired(harmed)


def test_what_does_not_help_is_undone():
    given = damage(tiny.model(), PAIR)
    pruned = cut(given)
    kept, record = repair_and_judge("harm", Harm(), given, pruned)
    assert kept is pruned
    assert not record.kept and record.after > record.before


def test_kl_on_held_out_text_is_the_mean_over_tokens():
    given = damage(tiny.model(), PAIR)
    pruned = cut(given)
    ids = given.held_out.input_ids
    with torch.no_grad():
        p, q = (torch.log_softmax(model(input_ids=ids).logits, dim=-1) for model in (given.dense.model, pruned))
    assert held_out_kl(given, pruned) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=tiny.ROUNDING)
    assert held_out_kl(given, given.dense.model) == pytest.approx(0, abs=tiny.ROUNDING)
    loss = torch.nn.functional.cross_entropy(q[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert given.judge("loss")(pruned) == pytest.approx(float(loss), abs=tiny.ROUNDING)


def test_repairs_are_named_set_and_chained():
    chain = parse_repairs("low-rank,rank=8 + refit,reads=false")
    assert chain == [("low-rank", LowRank(rank=8)), ("refit", Refit(reads=False))]
    assert parse_repairs("none") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("refitt", "unknown repair 'refitt'; did you mean refit"),
        ("low-rank,rnk=8", "unknown setting of low-rank 'rnk'; did you mean rank"),
        ("low-rank,rank=many", "low-rank cannot be set so: rank: Input should be a valid integer"),
        ("refit+bias", "bias puts modules in place of what was removed, so it comes first"),
    ],
)
def test_a_wrong_repair_is_one_sentence(text, words):
    with pytest.raises(InputError, match=words):
        parse_repairs(text)


def test_a_rank_beyond_the_stream_and_a_single_sequence_are_refused():
    config = tiny.config("llama")
    with pytest.raises(InputError, match="rank 33 is out of range: a map of this model's stream has 1 to 32"):
        LowRank(rank=33).check(find_architecture(config), config)
    given = damage(tiny.model(), PAIR)
    alone = replace(given, text=given.text.split(1)[0])
    with pytest.raises(InputError, match="give it at least 3"):
        Refit().repair(alone, cut(given))


def test_the_ffn_stand_in_still_adds_zero():
    stream = torch.randn(1, 2, 3)
    assert not bool(RemovedFFN()(stream).any())
