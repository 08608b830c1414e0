"""Perplexity and KL to dense against transformers' own loss and against a direct computation."""

import math

import pytest
import torch

import tiny
from depthcut.calibration import Samples
from depthcut.evaluation.language import compare_language
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.surgery import apply
from depthcut.types import Unit

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox")
REMOVED = [Unit(1, "attn"), Unit(1, "ffn"), Unit(4, "attn"), Unit(4, "ffn")]


def pair(family, removed=REMOVED):
    model = tiny.model(family)
    return model, apply(model, find_architecture(model.config), removed)


def measure(dense, pruned, samples, **options):
    streams = [DecoderStream(model, find_architecture(model.config)) for model in (dense, pruned)]
    found = compare_language(streams[0], {"pruned": streams[1]}, samples, **options)
    return {(row.name, row.model): row for row in found}


def padded(samples, lengths):
    """The same samples with only the first tokens of each sequence, the others arbitrary and masked."""
    mask = torch.zeros_like(samples.attention_mask)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.where(mask.bool(), samples.input_ids, torch.randint_like(samples.input_ids, 3, tiny.VOCABULARY))
    return Samples(ids, mask, samples.description, samples.document_digests)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_transformers_own_loss(family):
    dense, pruned = pair(family)
    samples = tiny.samples(num_samples=3, length=40)
    found = measure(dense, pruned, samples)
    for name, model in (("dense", dense), ("pruned", pruned)):
        # Sequences are equally long, so the mean of all tokens is transformers' mean over the batch.
        loss = float(model(input_ids=samples.input_ids, labels=samples.input_ids).loss)
        assert found["loss", name].value == pytest.approx(loss, abs=tiny.ROUNDING)
        assert found["perplexity", name].value == pytest.approx(math.exp(loss), rel=tiny.ROUNDING)
        assert found["perplexity", name].samples == 3


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_kl_is_that_of_a_direct_computation(family):
    dense, pruned = pair(family)
    samples = tiny.samples(num_samples=3, length=40)
    found = measure(dense, pruned, samples)["kl_to_dense", "pruned"]
    log_p, log_q = (model(input_ids=samples.input_ids).logits.log_softmax(dim=-1) for model in (dense, pruned))
    direct = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
    assert found.value == pytest.approx(float(direct.mean()), abs=tiny.ROUNDING)
    assert found.unit == "nats per token"


@torch.no_grad()
def test_acceptances_are_those_of_a_direct_computation():
    dense, pruned = pair("llama")
    samples = tiny.samples(num_samples=3, length=40)
    found = measure(dense, pruned, samples)
    p, q = (model(input_ids=samples.input_ids).logits.softmax(dim=-1) for model in (dense, pruned))
    drawn = torch.minimum(p, q).sum(dim=-1)
    assert found["draft_acceptance", "pruned"].value == pytest.approx(float(drawn.mean()), abs=tiny.ROUNDING)
    assert found["draft_acceptance", "pruned"].stderr == pytest.approx(
        float(drawn.mean(dim=-1).std() / math.sqrt(3)), abs=tiny.ROUNDING
    )
    same = (p.argmax(dim=-1) == q.argmax(dim=-1)).double().mean()
    assert found["draft_acceptance_greedy", "pruned"].value == float(same)


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_nothing_costs_exactly_nothing(family):
    found = measure(*pair(family, removed=()), tiny.samples())
    assert found["kl_to_dense", "pruned"].value == 0
    assert found["loss", "pruned"].value == found["loss", "dense"].value
    assert found["draft_acceptance_greedy", "pruned"].value == 1
    assert found["draft_acceptance", "pruned"].value == pytest.approx(1, abs=tiny.ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pads_are_left_out(family):
    dense, pruned = pair(family)
    lengths = [12, 5, 2]
    samples = padded(tiny.samples(num_samples=3, length=12), lengths)
    found = measure(dense, pruned, samples, batch_size=3)
    nll, kl = [], []
    for row, length in zip(samples.input_ids, lengths, strict=True):
        log_p, log_q = (model(input_ids=row[None, :length]).logits[0].log_softmax(dim=-1) for model in (dense, pruned))
        nll.append(-log_q[:-1].gather(1, row[1:length, None]))
        kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    assert found["loss", "pruned"].value == pytest.approx(float(torch.cat(nll).mean()), abs=tiny.ROUNDING)
    assert found["kl_to_dense", "pruned"].value == pytest.approx(float(torch.cat(kl).mean()), abs=tiny.ROUNDING)


def test_the_batch_size_changes_nothing():
    dense, pruned = pair("llama")
    samples = padded(tiny.samples(num_samples=4, length=20), [20, 7, 13, 20])
    one, all_at_once = (measure(dense, pruned, samples, batch_size=size) for size in (1, 4))
    for key, row in one.items():
        assert all_at_once[key].value == pytest.approx(row.value, rel=tiny.ROUNDING, abs=tiny.ROUNDING)
        assert all_at_once[key].stderr == pytest.approx(row.stderr, rel=tiny.ROUNDING, abs=tiny.ROUNDING)


@torch.no_grad()
def test_standard_errors_are_those_over_sequences():
    dense, pruned = pair("llama")
    samples = tiny.samples(num_samples=5, length=24)
    found = measure(dense, pruned, samples)
    losses = torch.tensor([float(pruned(input_ids=row[None], labels=row[None]).loss) for row in samples.input_ids])
    error = float(losses.double().std() / math.sqrt(5))
    assert found["loss", "pruned"].stderr == pytest.approx(error, abs=tiny.ROUNDING)
    perplexity = found["perplexity", "pruned"]
    assert perplexity.stderr == pytest.approx(perplexity.value * error, abs=perplexity.value * tiny.ROUNDING)
    one = measure(dense, pruned, tiny.samples(num_samples=1))
    assert all(row.stderr is None for row in one.values())


@torch.no_grad()
def test_a_longer_sequence_weighs_more_in_the_standard_error_too():
    dense, pruned = pair("llama")
    lengths = [21, 3, 11]
    samples = padded(tiny.samples(num_samples=3, length=21), lengths)
    found = measure(dense, pruned, samples)["loss", "pruned"]
    counts = torch.tensor([length - 1.0 for length in lengths], dtype=torch.float64)
    means = torch.tensor(
        [
            float(pruned(input_ids=row[None, :length], labels=row[None, :length]).loss)
            for row, length in zip(samples.input_ids, lengths, strict=True)
        ],
        dtype=torch.float64,
    )
    mean = float((counts * means).sum() / counts.sum())
    assert found.value == pytest.approx(mean, abs=tiny.ROUNDING)
    # The textbook variance of a ratio estimator: weighted squares of the deviations from the corpus mean.
    variance = float(((counts / counts.mean()) ** 2 * (means - mean) ** 2).sum() / (3 * 2))
    assert found.stderr == pytest.approx(math.sqrt(variance), abs=tiny.ROUNDING)


def test_the_dense_model_answers_once_for_all():
    dense = tiny.model("llama")
    models = [dense, *(apply(dense, find_architecture(dense.config), REMOVED[:count]) for count in (2, 4))]
    projected = []
    dense.get_output_embeddings().register_forward_hook(lambda *call: projected.append(call[2].shape[1]))
    streams = [DecoderStream(model, find_architecture(model.config)) for model in models]
    samples = tiny.samples(num_samples=3, length=40)
    compare_language(streams[0], {"one": streams[1], "two": streams[2]}, samples)
    assert sum(projected) == samples.input_ids.numel()


def test_a_model_measures_the_same_whoever_is_beside_it():
    dense = tiny.model("llama")
    others = {str(count): apply(dense, find_architecture(dense.config), REMOVED[:count]) for count in (2, 4)}
    streams = {name: DecoderStream(model, find_architecture(model.config)) for name, model in others.items()}
    samples, of_dense = tiny.samples(num_samples=3, length=40), DecoderStream(dense, find_architecture(dense.config))
    together = compare_language(of_dense, streams, samples)
    for name, stream in streams.items():
        alone = compare_language(of_dense, {name: stream}, samples)
        assert [row for row in together if row.model in ("dense", name)] == alone
