"""One streamed pass must agree with the metrics' definitions written out over the model's own activations."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from depthcut.importance.static import static_scores
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.types import InputError

REFERENCE_FAMILIES = ["llama", "qwen2", "gemma3_text", "gpt2", "gpt_neox"]


def engine(family="llama", **changes):
    model = tiny.model(family, **changes)
    return DecoderStream(model, find_architecture(model.config))


def table(stream, samples, **options):
    scores, angular = static_scores(stream, samples, **options)
    return {(found.metric, found.unit): found.values for found in scores}, angular


@torch.no_grad()
def block_streams(model, ids):
    """The stream entering every block and leaving the last one, by plain hooks: before the final norm."""
    blocks = find_architecture(model.config).block_list(model)
    seen = []
    handles = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy())) for b in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _, args, out: seen.append(out.numpy())))
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", REFERENCE_FAMILIES)
def test_block_metrics_agree_with_plain_hooks(family):
    stream, samples = engine(family), tiny.samples()
    found, angular = table(stream, samples, batch_size=2)
    h = block_streams(stream.model, samples.input_ids)
    for layer, (x, y) in enumerate(itertools.pairwise(h)):
        norm = lambda v, p=2: np.linalg.norm(v, ord=p, axis=-1)
        expected = {
            "block-influence": 1 - ((x * y).sum(-1) / norm(x) / norm(y)).mean(),
            "relative-l1": (norm_l1(y - x) / norm_l1(x)).mean(),
            "relative-l2": (norm(y - x) / norm(x)).mean(),
            "relative-magnitude": (norm(y - x) / norm(y)).mean(),
        }
        for metric, value in expected.items():
            assert found[metric, "block"][str(layer)] == pytest.approx(value, abs=tiny.ROUNDING), (layer, metric)
    for layer in range(tiny.NUM_BLOCKS):
        for n in range(1, tiny.NUM_BLOCKS - layer + 1):
            x, y = h[layer][:, -1], h[layer + n][:, -1]
            cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
            assert angular[layer][n - 1] == pytest.approx((np.arccos(cosine) / np.pi).mean(), abs=tiny.ROUNDING)


def norm_l1(values):
    return np.abs(values).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_sublayer_metrics_agree_with_what_the_branch_adds(family):
    stream, samples = engine(family), tiny.samples()
    found, _ = table(stream, samples)
    h = block_streams(stream.model, samples.input_ids)
    block, branches = stream.blocks[3], stream.architecture.branches
    added = {}
    for kind, branch in branches.items():
        module = getattr(block, branch.modules[-1])
        module.register_forward_hook(
            lambda _, args, out, kind=kind: added.__setitem__(kind, (out[0] if isinstance(out, tuple) else out).numpy())
        )
    stream.model(input_ids=samples.input_ids, use_cache=False)
    x = h[3]
    before = {"attn": x, "ffn": x if stream.architecture.parallel else x + added["attn"]}
    for kind in branches:
        f, b = added[kind], before[kind]
        a = b + f
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert found["cosine", "sublayer"][f"3.{kind}"] == pytest.approx(1 - cosine.mean(), abs=tiny.ROUNDING)
        ratio = np.linalg.norm(f, axis=-1) / np.linalg.norm(a, axis=-1)
        assert found["relative-magnitude", "sublayer"][f"3.{kind}"] == pytest.approx(ratio.mean(), abs=tiny.ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_planted_identity_block_is_ranked_last_by_every_metric(family):
    stream = engine(family)
    block = stream.blocks[2]
    with torch.no_grad():
        for branch in stream.architecture.branches.values():
            projection = block.get_submodule(branch.projection)
            projection.weight.zero_()
            if projection.bias is not None:
                projection.bias.zero_()
    found, angular = table(stream, tiny.samples())
    for (metric, unit), values in found.items():
        names = ["2"] if unit == "block" else ["2.attn", "2.ffn"]
        ranked = sorted(values, key=values.__getitem__)
        assert set(ranked[: len(names)]) == set(names), (metric, unit)
        assert all(abs(values[name]) < tiny.ROUNDING for name in names), (metric, unit)
    assert min((row[0], layer) for layer, row in enumerate(angular))[1] == 2


def test_pads_are_left_out_and_the_last_token_is_the_last_one_that_is_no_pad():
    stream, samples = engine(), tiny.samples(2, 8)
    ids = torch.nn.functional.pad(samples.input_ids, (0, 5), value=7)
    padded = replace(samples, input_ids=ids, attention_mask=(torch.arange(13) < 8).long().expand(2, 13))
    plain, plain_angular = table(stream, samples)
    masked, masked_angular = table(stream, padded)
    for key, values in plain.items():
        assert masked[key] == pytest.approx(values, abs=tiny.ROUNDING), key
    for row, expected in zip(masked_angular, plain_angular, strict=True):
        assert row == pytest.approx(expected, abs=tiny.ROUNDING)


def test_the_batch_size_changes_nothing_and_memory_keeps_no_sequence():
    stream, samples = engine(), tiny.samples(5)
    one, angular_one = table(stream, samples, batch_size=1)
    all_, angular_all = table(stream, samples, batch_size=5)
    for key in one:
        assert one[key] == pytest.approx(all_[key], abs=tiny.ROUNDING)
    assert np.concatenate(angular_one) == pytest.approx(np.concatenate(angular_all), abs=tiny.ROUNDING)


def test_standard_errors_are_those_of_the_sequences():
    stream, samples = engine(), tiny.samples(4)
    scores, _ = static_scores(stream, samples)
    influence = next(found for found in scores if found.metric == "block-influence")
    alone = []
    for row in range(4):
        only = replace(samples, input_ids=samples.input_ids[row : row + 1], attention_mask=samples.attention_mask[:1])
        alone.append(table(stream, only)[0]["block-influence", "block"]["1"])
    assert influence.standard_errors["1"] == pytest.approx(np.std(alone, ddof=1) / math.sqrt(4), abs=tiny.ROUNDING)


def test_nan_activations_are_named_with_their_unit():
    stream = engine()
    with torch.no_grad():
        stream.blocks[3].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(InputError, match=r"activations at 3\.ffn are not finite"):
        static_scores(stream, tiny.samples())


def test_bfloat16_cosines_stay_in_range():
    stream = engine()
    stream.model.to(torch.bfloat16)
    with torch.no_grad():
        stream.blocks[1].self_attn.o_proj.weight.zero_()
    found, _ = table(stream, tiny.samples())
    assert all(0 <= value <= 2 for value in found["cosine", "sublayer"].values())
