"""Removals that llama.cpp would compute otherwise are told apart from those that keep its own rules."""

import pytest

import tiny
from depthcut.export import llama_cpp
from depthcut.model.architectures import find_architecture
from depthcut.model.layer_config import cut_config
from depthcut.model.packing import pack
from depthcut.types import Unit


def config_after(family, removed_blocks, num_blocks=12, **changes):
    config = tiny.config(family, num_hidden_layers=num_blocks, **changes)
    architecture = find_architecture(config)
    removed = {Unit(layer, kind) for layer in removed_blocks for kind in architecture.branches}
    cut_config(config, pack(architecture.units(num_blocks), removed, architecture), num_blocks)
    return config


def rhythm(family, num_blocks=12):
    period = llama_cpp.RHYTHMS[family]
    others = {"llama4_text": "chunked_attention", "qwen3_next": "linear_attention", "qwen3_5_text": "linear_attention"}
    full, other = "full_attention", others.get(family, "sliding_attention")
    found = {"layer_types": [full if layer % period == period - 1 else other for layer in range(num_blocks)]}
    if family == "llama4_text":
        found |= {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(num_blocks)], "moe_layers": [0]}
    if family.startswith("gemma"):
        found["query_pre_attn_scalar"] = 8
    if family in ("qwen3_next",):
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    return found


@pytest.mark.parametrize("family", llama_cpp.RHYTHMS)
def test_a_rhythm_is_kept_only_by_whole_periods(family):
    period = llama_cpp.RHYTHMS[family]
    assert llama_cpp.misread(config_after(family, range(period), **rhythm(family))) is None
    broken = llama_cpp.misread(config_after(family, [0], **rhythm(family)))
    assert broken is not None and f"block of {family} for one with full attention" in broken


def test_attentions_that_do_not_rotate_are_counted():
    flags = [int((layer + 1) % 4 != 0) for layer in range(12)]
    assert llama_cpp.misread(config_after("smollm3", range(4), no_rope_layers=flags)) is None
    broken = llama_cpp.misread(config_after("smollm3", [0], no_rope_layers=flags))
    assert broken == "it takes every fourth block of smollm3 for one that does not rotate"


@pytest.mark.parametrize(("family", "count"), llama_cpp.SCALED_BY_WIDTH.items())
def test_the_27b_models_are_known_by_their_count(family, count):
    # Width over heads is 12, a head 8: only the first is the 27B model's scale.
    shape = {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 8, "layer_types": None}
    whole = tiny.config(family, num_hidden_layers=count, **shape | {"query_pre_attn_scalar": 12})
    whole.layer_types = None
    assert llama_cpp.misread(whole) is None
    whole.num_hidden_layers = count - 2
    assert "scales attention by 8" in llama_cpp.misread(whole)
    # And another model that comes down to that count.
    whole.num_hidden_layers, whole.query_pre_attn_scalar = count, 8
    assert "scales attention by 12" in llama_cpp.misread(whole)


@pytest.mark.parametrize(("rank", "readable"), [(None, {26, 27}), (4, {25, 28})])
def test_lite_models_are_known_by_their_count(rank, readable):
    found = {
        count
        for count in (25, 26, 27, 28)
        if llama_cpp.misread(tiny.config("deepseek_v2", num_hidden_layers=count, q_lora_rank=rank)) is None
    }
    assert found == readable


def test_a_model_without_such_rules_is_read_as_it_is():
    assert llama_cpp.misread(tiny.config("llama")) is None
