"""Training a seam alone finds what was planted, touches nothing else, is judged, and comes out the same again."""

from dataclasses import replace

import pytest
import torch

import tiny
from depthcut.calibration import Samples
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, parse_repairs, repair_and_judge
from depthcut.repairs.seam import Seam
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

PAIR = frozenset({Unit(2, "ffn"), Unit(3, "attn")})
QUICK = Seam(steps=40, batch_size=8, learning_rate=3e-3)


def damage(model, removed=PAIR, **changes):
    stream = DecoderStream(model, find_architecture(model.config))
    text, held_out = tiny.samples(48, 24), tiny.samples(6, 24, seed=5)
    return Damage(stream, frozenset(removed), text, held_out, 2**30, batch_size=16, **changes)


def cut(given):
    return apply(given.dense.model, given.dense.architecture, given.removed)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "falcon"])
def test_a_seam_helps_every_family_and_only_what_stands_about_the_run_changes(family):
    model = tiny.model(family)
    removals = tiny.removals(find_architecture(model.config))
    given = damage(model, removals.get("pair", removals["block"]))
    pruned = cut(given)
    before = {name: tensor.clone() for name, tensor in pruned.named_parameters()}
    repaired, record = repair_and_judge("seam", QUICK, given, pruned)
    assert record.kept and record.after < record.before
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.named_parameters())
    changed = {name for name, tensor in repaired.named_parameters() if not torch.equal(before[name], tensor)}
    blocks = {name.split(".layers.")[-1].split(".h.")[-1].split(".")[0] for name in changed}
    assert blocks <= set("012345") and ("pair" not in removals or len(blocks) <= 3)
    assert any("norm" in name or "ln" in name for name in changed)
    assert record.curve[3][1] < record.curve[0][1]


def test_a_run_at_either_end_has_a_seam_too():
    for removed in ({Unit(0, "attn"), Unit(0, "ffn")}, {Unit(5, "attn"), Unit(5, "ffn")}):
        given = damage(tiny.model(), removed)
        record = repair_and_judge("seam", QUICK, given, cut(given))[1]
        assert record.curve[3][1] < record.curve[0][1] and record.after <= record.before


def test_two_runs_give_the_same_weights_and_pads_change_nothing():
    given, brief = damage(tiny.model()), replace(QUICK, steps=8)
    padding = torch.zeros(len(given.text.input_ids), 3, dtype=torch.long)
    padded = Samples(
        torch.cat([given.text.input_ids, padding], dim=1),
        torch.cat([given.text.attention_mask, padding], dim=1),
        given.text.description,
        given.text.document_digests,
    )
    plain = brief.repair(given, cut(given)).model
    again = brief.repair(given, cut(given)).model
    for (name, expected), (_, found) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    for changed in (replace(given, text=padded), replace(given, memory_budget=0)):
        other = brief.repair(changed, cut(given)).model
        for (name, expected), (_, found) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3, msg=name)


def test_weights_that_no_check_likes_go_back_to_where_they_began():
    given = damage(tiny.model())
    pruned = cut(given)
    for harmless in (replace(QUICK, learning_rate=100.0), replace(QUICK, anchor=1.0)):
        left = harmless.repair(given, pruned).model
        for (name, expected), (_, found) in zip(pruned.named_parameters(), left.named_parameters(), strict=True):
            assert torch.equal(found, expected), name


def test_sixteen_bits_train_in_float32_and_are_rounded_once():
    given = damage(tiny.model().to(torch.bfloat16))
    repaired, record = repair_and_judge("seam", QUICK, given, cut(given))
    assert record.kept and record.after < record.before
    assert {parameter.dtype for parameter in repaired.parameters()} == {torch.bfloat16}


def test_it_comes_after_refit_and_needs_two_sequences():
    assert [name for name, _ in parse_repairs("refit+seam,steps=40")] == ["refit", "seam"]
    given = damage(tiny.model())
    with pytest.raises(InputError, match="give it at least 2"):
        Seam().repair(replace(given, text=given.text.split(1)[0]), cut(given))
