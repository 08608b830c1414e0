"""Evaluating a removed set from the middle of the model must give what whole forward passes give, for less work."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.ablation.objectives import OBJECTIVES, asks_questions, find_objective
from depthcut.model.architectures import find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.stream import DecoderStream
from depthcut.process.journal import Journal
from depthcut.types import InputError, Unit

ON_TEXT = [
    entry.name for entry in OBJECTIVES if not asks_questions(entry.name) and find_objective(entry.name).head == "tokens"
]


def engine(family="llama", **changes):
    model = tiny.model(family, **changes)
    return DecoderStream(model, find_architecture(model.config))


def units(text):
    return frozenset(Unit.parse(name) for name in text.split())


@torch.no_grad()
def log_probabilities(stream, ids, removed):
    with bypass(stream.model, stream.architecture, removed):
        return stream.model(input_ids=ids, use_cache=False).logits


def directly(name, z, zp, ids):
    """Each objective over whole sequences, from its definition."""
    p, q = z.double().log_softmax(-1), zp.double().log_softmax(-1)
    m = ((p.exp() + q.exp()) / 2).log()
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)
    nll = -q[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    cosine = torch.cosine_similarity(z.double(), zp.double(), dim=-1).clamp(0, 1)
    distance = (z - zp).double().norm(dim=-1)
    return {
        "kl": kl(p, q).mean(-1),
        "js": ((kl(p, m) + kl(q, m)) / 2).mean(-1),
        "js-finercut-code": ((kl(m, p) + kl(m, q)) / 2).mean(-1),
        "loss": nll.mean(-1),
        "logit-angular": cosine.arccos().mean(-1),
        "logit-l2": (z - zp).double().flatten(1).norm(dim=-1),
        "logit-l2-token": distance[:, :-1].mean(-1),
        "acceptance": 1 - torch.minimum(p, q).exp().sum(-1).mean(-1),
    }[name]


@pytest.mark.parametrize("name", ON_TEXT)
def test_every_objective_agrees_with_its_definition(name):
    stream, samples = engine("gemma3_text"), tiny.samples(4)
    removed = units("1.attn 3.ffn 4.attn 4.ffn")
    expected = directly(
        name,
        log_probabilities(stream, samples.input_ids, ()),
        log_probabilities(stream, samples.input_ids, removed),
        samples.input_ids,
    )
    ablation = Ablation(stream, samples, name, batch_size=2)
    found = ablation.per_sequence([removed], range(ablation.num_batches))[0]
    torch.testing.assert_close(found, expected.double(), atol=tiny.ROUNDING, rtol=2 * tiny.ROUNDING)
    if name != "loss":
        assert ablation([]) == pytest.approx(
            0, abs=tiny.ROUNDING if name != "logit-angular" else math.sqrt(tiny.ROUNDING)
        )


def test_excerpts_are_the_same_whatever_runs_together():
    stream, samples = engine("llama"), tiny.samples(8)
    one, three = (Ablation(stream, samples, "kl", batch_size=size).on_excerpts(0.4) for size in (1, 3))
    assert one.samples.description == three.samples.description
    assert one([]) == pytest.approx(three([]), abs=tiny.ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("memory_budget", [2**30, 1])
def test_prefix_reuse_changes_no_bit_whatever_is_kept(family, memory_budget):
    stream, samples = engine(family), tiny.samples(2)
    bases = [units(""), units("2.ffn"), units("2.ffn 0.attn"), units("4.attn 4.ffn"), units("")]
    ablation = Ablation(stream, samples, "kl", memory_budget=memory_budget)
    for base in bases:
        ablation.rebase(base)
        candidates = [base | {unit} for unit in stream.units if unit not in base]
        swaps = [base - {unit} | {Unit(3, "attn")} for unit in base]
        fresh = Ablation(stream, samples, "kl", memory_budget=2**30)
        assert ablation.evaluate([*candidates, *swaps]) == [fresh(removed) for removed in [*candidates, *swaps]]


def test_a_round_with_prefix_reuse_costs_about_half_of_full_passes():
    stream, samples = engine(), tiny.samples(2)
    ablation = Ablation(stream, samples, "kl")
    before = stream.unit_evaluations
    ablation.evaluate([frozenset([unit]) for unit in stream.units])
    units_of_a_pass = len(stream.units)
    naive = 2 * units_of_a_pass * (units_of_a_pass - 1)
    assert stream.unit_evaluations - before == 2 * sum(range(units_of_a_pass)) == 0.5 * naive
    assert ablation.candidate_evaluations == units_of_a_pass


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_going_on_from_a_set_that_was_run_costs_nothing_and_changes_no_bit(family):
    stream, samples = engine(family), tiny.samples(3)
    ablation, base = Ablation(stream, samples, "kl"), units("1.ffn")
    ablation.per_sequence([units("4.attn"), base], range(3), as_next=True)
    ablation.rebase(base)
    later = [base | {unit} for unit in stream.units if unit not in base]
    candidates, before = ablation.asked_unit_evaluations, stream.unit_evaluations
    values = ablation.evaluate(later)
    assert stream.unit_evaluations - before == ablation.asked_unit_evaluations - candidates
    assert ablation.whole_unit_evaluations == len(stream.units) * 3 + ablation.asked_unit_evaluations
    assert values == [Ablation(stream, samples, "kl")(removed) for removed in later]
    elsewhere = Ablation(stream, samples, "kl")
    elsewhere.evaluate([base])
    elsewhere.rebase(base)
    assert elsewhere.evaluate(later) == values
    assert elsewhere.whole_unit_evaluations > len(stream.units) * 3 + elsewhere.asked_unit_evaluations


def test_what_may_be_next_takes_no_more_than_its_share_of_memory():
    stream, samples = engine(), tiny.samples(3)
    budget = 2**21
    ablation = Ablation(stream, samples, "kl", memory_budget=budget)
    ablation.evaluate([units("1.ffn")])
    before = ablation.kept_bytes
    sets = [frozenset(pair) for pair in itertools.combinations(stream.units, 2)]
    values = ablation.per_sequence(sets, range(3), as_next=True)
    assert before < ablation.kept_bytes <= before + budget // 8
    ablation.rebase(sets[0])
    assert ablation.kept_bytes <= before
    fresh = Ablation(stream, samples, "kl", memory_budget=1)
    assert fresh.per_sequence(sets, range(3)).equal(values)


def test_pads_change_nothing():
    stream, samples = engine(), tiny.samples(2, 8)
    ids = torch.nn.functional.pad(samples.input_ids, (0, 4), value=9)
    padded = replace(samples, input_ids=ids, attention_mask=(torch.arange(12) < 8).long().expand(2, 12))
    for name in ON_TEXT:
        removed = units("1.attn 2.ffn")
        plain, masked = Ablation(stream, samples, name), Ablation(stream, padded, name)
        assert masked(removed) == pytest.approx(plain(removed), rel=tiny.ROUNDING, abs=tiny.ROUNDING)


def test_a_journal_saves_the_work_and_keeps_the_values(tmp_path):
    stream, samples = engine(), tiny.samples(2)
    sets = [frozenset(pair) for pair in itertools.combinations(stream.units[:4], 2)]
    first = Ablation(stream, samples, "js", journal=Journal(tmp_path / "journal.jsonl", {"objective": "js"}))
    values = first.evaluate(sets)
    again = Ablation(stream, samples, "js", journal=Journal(tmp_path / "journal.jsonl", {"objective": "js"}))
    before = stream.unit_evaluations
    assert again.evaluate(sets) == values
    assert stream.unit_evaluations == before
    assert again.candidate_evaluations == 0


def test_a_journal_cut_off_in_its_last_line_loses_that_line_only(tmp_path, capsys):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"objective": "js"})
    journal.add({"value": 1})
    journal.add({"value": 2})
    path.write_bytes(path.read_bytes()[:-5])
    assert Journal(path, {"objective": "js"}).lines == [{"value": 1}]
    assert "dropped its last line" in capsys.readouterr().err
    assert Journal(path, {"objective": "js"}).lines == [{"value": 1}]
    with pytest.raises(InputError, match="of another model, text or objective"):
        Journal(path, {"objective": "kl"})
    path.write_text(path.read_text() + "{broken\n" + '{"value": 3}\n')
    with pytest.raises(InputError, match="line 3 of .* is damaged"):
        Journal(path, {"objective": "js"})
