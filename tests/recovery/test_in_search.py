"""A search that repairs what it tries: the repair is a function of the set, finds what was planted, and decides."""

from dataclasses import replace

import pytest
import torch

import tiny
from depthcut.importance.ablation import Ablation
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.model.units import sizes_from_config
from depthcut.recovery.in_search import RepairedAblation, check_search_recover
from depthcut.search.greedy import Greedy
from depthcut.search.problem import Budget, Problem
from depthcut.types import InputError, Unit


def stream_of(family="llama", **changes):
    model = tiny.model(family, **changes)
    return DecoderStream(model, find_architecture(model.config))


def removed(*names):
    return frozenset(Unit.parse(name) for name in names)


SETS = [
    removed(),
    removed("3.ffn"),
    removed("0.attn"),
    removed("2.ffn", "3.attn"),
    removed("1.attn", "2.ffn", "3.attn", "3.ffn"),
    removed("1.attn", "1.ffn", "4.attn", "4.ffn"),
    removed("5.attn", "5.ffn"),
]


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt2"])
def test_a_value_depends_on_the_set_alone(family):
    stream, samples = stream_of(family), tiny.samples(6, 20)
    fresh = [RepairedAblation(stream, samples, "kl")([*units]) for units in SETS]
    other = RepairedAblation(stream, samples, "kl", batch_size=1, memory_budget=0)
    for base in SETS:
        other.rebase(base)
        other._memo.clear()
        other._latest = None
        assert other.evaluate(SETS[::-1])[::-1] == pytest.approx(fresh, rel=1e-4, abs=1e-7)


def test_repair_lowers_what_removal_costs_and_leaves_the_model_as_it_is():
    stream, samples = stream_of(), tiny.samples(24, 40)
    before = [tensor.clone() for tensor in stream.model.parameters()]
    plain, repaired = Ablation(stream, samples, "kl"), RepairedAblation(stream, samples, "kl")
    assert repaired([]) == plain([]) == 0
    # Nothing stands before the first sublayer that could make up for it.
    assert repaired(removed("0.attn")) == pytest.approx(plain(removed("0.attn")))
    for units in SETS[3:]:
        assert repaired(units) < plain(units)
    assert all(torch.equal(old, new) for old, new in zip(before, stream.model.parameters(), strict=True))


@torch.no_grad()
def test_what_a_repair_undoes_goes_first():
    """FFN 3 doubles what attention 3 writes into channels of its own; FFN 1 matters less and nothing can replace it."""
    stream = stream_of(seed=1)
    model, channels = stream.model, 8
    model.model.embed_tokens.weight[:, :channels] = 0
    for layer in model.model.layers[:4]:
        layer.mlp.down_proj.weight[:channels] = 0
        if layer is not model.model.layers[3]:
            layer.self_attn.o_proj.weight[:channels] = 0
    seen = {}
    # The norm divides by the length, so the stand-in looks at the stream before it.
    layer = model.model.layers[3]
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0]))
    layer.mlp.forward = lambda normed: torch.nn.functional.pad(
        2 * seen["stream"][..., :channels], (0, normed.shape[-1] - channels)
    )
    samples = tiny.samples(12, 40)
    problem = Problem(
        architecture=stream.architecture,
        num_blocks=tiny.NUM_BLOCKS,
        sizes=sizes_from_config(model.config, stream.architecture, torch.float32),
        unit="ffn",
        budget=Budget("count", 1),
    )
    found = {}
    for kind in (Ablation, RepairedAblation):
        posed = replace(problem, ablation=kind(stream, samples, "kl"))
        found[kind] = Greedy(strategy="exhaustive", swap=False).path(posed)[0]
    assert found[Ablation].remove != (Unit(3, "ffn"),)
    assert found[RepairedAblation].remove == (Unit(3, "ffn"),)


def test_parallel_families_are_refused():
    config = tiny.config("gpt_neox")
    with pytest.raises(InputError, match="read the same stream, and a search does not repair those"):
        check_search_recover(find_architecture(config), config)
