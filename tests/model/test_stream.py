"""The engine must agree with the model's own forward pass, from every unit on and in every family."""

import pytest
import torch
from transformers import PreTrainedConfig

import tiny
from depthcut.model.architectures import FAMILIES, find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.proof import prove
from depthcut.model.stream import DecoderStream
from depthcut.types import InputError, Unit


def engine(family, **changes):
    model = tiny.model(family, **changes)
    return DecoderStream(model, find_architecture(model.config))


@torch.no_grad()
@pytest.mark.parametrize("case", tiny.CASES)
def test_resumed_at_every_unit_equals_the_full_forward(case):
    family, changes = tiny.CASES[case]
    stream = engine(family, **changes)
    ids = tiny.samples().input_ids
    batch = stream.prepare(ids)
    entering = {}
    final = stream.run(batch, visit=lambda unit, before, _: entering.setdefault(unit, before))
    full = stream.model(input_ids=ids, use_cache=False).logits
    resumed = torch.cat([piece for _, piece in stream.logits(batch, final)], dim=1)
    assert torch.equal(resumed, full)
    for position, unit in enumerate(stream.units):
        entry = stream.entry(position)
        assert torch.equal(stream.run(batch, start=entry, stream=entering[stream.units[entry]]), final), unit
    prove(stream, ids[:1])


@torch.no_grad()
@pytest.mark.parametrize("case", tiny.CASES)
def test_what_units_add_makes_up_the_block(case):
    family, changes = tiny.CASES[case]
    stream = engine(family, **changes)
    seen = {}
    stream.run(
        stream.prepare(tiny.samples().input_ids), visit=lambda unit, before, after: seen.update({unit: (before, after)})
    )
    for layer in range(len(stream.blocks)):
        entering, leaving = seen[layer]
        kinds = list(stream.architecture.branches)
        added = sum(after - before for before, after in (seen[Unit(layer, kind)] for kind in kinds))
        torch.testing.assert_close(entering + added, leaving, atol=1e-4, rtol=1e-4)
        assert seen[Unit(layer, kinds[0])][0] is entering


@torch.no_grad()
@pytest.mark.parametrize("case", tiny.CASES)
def test_running_without_units_equals_bypassing_them(case):
    family, changes = tiny.CASES[case]
    stream = engine(family, **changes)
    ids = tiny.samples().input_ids
    first, last = stream.units[0].kind, stream.units[-1].kind
    removed = {Unit(0, first), Unit(2, last), Unit(3, first), Unit(3, last)}
    removed = {unit for unit in removed if unit.layer not in stream.architecture.staying}
    batch = stream.prepare(ids)
    ours = torch.cat([p for _, p in stream.logits(batch, stream.run(batch, removed))], dim=1)
    dense = stream.model(input_ids=ids, use_cache=False).logits
    with bypass(stream.model, stream.architecture, removed):
        bypassed = stream.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(ours, bypassed)
    assert not torch.allclose(ours, dense, atol=1e-3)
    assert torch.equal(stream.model(input_ids=ids, use_cache=False).logits, dense)


@torch.no_grad()
def test_unit_evaluations_count_every_sublayer_on_every_sequence():
    stream = engine("llama")
    calls = []
    for block in stream.blocks:
        for module in (block.self_attn, block.mlp):
            module.register_forward_hook(
                lambda _, args, out: calls.append((out[0] if isinstance(out, tuple) else out).shape[0])
            )
    batch = stream.prepare(tiny.samples().input_ids)
    assert calls == []
    stream.run(batch, {Unit(1, "attn"), Unit(4, "attn"), Unit(4, "ffn")})
    stream.run(batch, {Unit(3, "ffn")}, start=7, stream=batch.embedded)
    assert sum(calls) == stream.unit_evaluations == 3 * ((12 - 3) + 4)


@torch.no_grad()
def test_pads_do_not_change_the_tokens_before_them():
    stream = engine("gemma3_text")
    ids = tiny.samples(1, 8).input_ids
    padded = torch.nn.functional.pad(ids, (0, 4))
    mask = (torch.arange(12) < 8).long()[None]
    plain = stream.run(stream.prepare(ids))
    masked = stream.run(stream.prepare(padded, mask))
    torch.testing.assert_close(masked[:, :8], plain, atol=tiny.ROUNDING, rtol=tiny.ROUNDING)


def test_logits_in_small_pieces_are_the_same():
    stream = engine("llama")
    batch = stream.prepare(tiny.samples().input_ids)
    with torch.no_grad():
        final = stream.run(batch)
        whole = [piece for _, piece in stream.logits(batch, final)]
        pieces = list(stream.logits(batch, final, 4 * tiny.VOCABULARY * 3 * 5))
    assert [positions.stop - positions.start for positions, _ in pieces] == [5, 5, 2]
    torch.testing.assert_close(
        torch.cat([piece for _, piece in pieces], dim=1), whole[0], atol=tiny.ROUNDING, rtol=tiny.ROUNDING
    )


def test_the_probe_refuses_a_block_that_does_more_than_its_row_says():
    stream = engine("llama")
    block = stream.blocks[2]

    class Scaled(type(block)):
        def forward(self, hidden_states, *args, **kwargs):
            return super().forward(hidden_states, *args, **kwargs) * 1.5

    block.__class__ = Scaled
    with pytest.raises(InputError, match="cannot be run from the middle"):
        prove(stream, tiny.samples(1, 6).input_ids)


def test_bypass_restores_the_model_after_an_exception():
    stream = engine("gpt2")
    modules = dict(stream.model.named_modules())
    with pytest.raises(RuntimeError, match="inside"), bypass(stream.model, stream.architecture, [Unit(1, "attn")]):
        raise RuntimeError("inside")
    assert dict(stream.model.named_modules()) == modules


def test_an_unknown_family_is_refused_with_the_nearest_ones():
    with pytest.raises(InputError, match="'gemma4x'.*gemma"):
        find_architecture(type("Config", (PreTrainedConfig,), {"model_type": "gemma4x"})())
    assert "llama" in FAMILIES
