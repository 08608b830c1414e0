"""Surgery must leave exactly the model that bypassing gives, and a configuration that belongs to it."""

import itertools

import pytest
import torch

import tiny
from depthcut.model.architectures import FAMILIES, find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.layer_config import cut_config
from depthcut.model.packing import is_dense, pack
from depthcut.surgery import apply, check_removal
from depthcut.types import InputError, Unit


def units(text):
    return {Unit.parse(name) for name in text.split()}


def generate(model, ids, use_cache):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=9,
        min_new_tokens=9,
        do_sample=False,
        use_cache=use_cache,
    )


BLOCKS = "1.attn 1.ffn 4.attn 4.ffn"
PAIRS = "0.ffn 1.attn 3.ffn 4.attn"
SUBLAYERS = "0.attn 2.ffn 3.attn 5.ffn"


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "removed"), itertools.product(["llama", "gemma3_text", "gpt2", "gpt_neox"], [BLOCKS, PAIRS, SUBLAYERS])
)
def test_removed_equals_bypassed_and_cached_equals_uncached(family, removed):
    model = tiny.model(family)
    architecture = find_architecture(model.config)
    ids = tiny.samples().input_ids[:1]
    with bypass(model, architecture, units(removed)):
        bypassed = model(input_ids=ids, use_cache=False).logits
    dense = model(input_ids=ids, use_cache=False).logits
    pruned = apply(model, architecture, units(removed))
    assert torch.equal(pruned(input_ids=ids, use_cache=False).logits, bypassed)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, dense)
    assert torch.equal(generate(pruned, ids, True), generate(pruned, ids, False))


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
def test_an_empty_plan_gives_the_dense_model_bit_for_bit(family):
    model = tiny.model(family)
    ids = tiny.samples().input_ids
    pruned = apply(model, find_architecture(model.config), ())
    assert torch.equal(pruned(input_ids=ids).logits, model(input_ids=ids).logits)
    assert pruned.config.to_dict() == model.config.to_dict()


def test_packed_pairs_take_attention_settings_from_the_attention():
    model = tiny.model("gemma3_text")
    pruned = apply(model, find_architecture(model.config), units("1.ffn 2.attn"))
    old = model.config.layer_types
    assert pruned.config.layer_types == [old[0], old[1], *old[3:]]


def test_max_window_layers_says_where_sliding_begins_after_the_cut():
    model = tiny.model("qwen2", layer_types=["full_attention"] * 3 + ["sliding_attention"] * 3, max_window_layers=3)
    pruned = apply(model, find_architecture(model.config), units(BLOCKS))
    assert pruned.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert pruned.config.max_window_layers == 2


def test_pruned_and_dense_share_their_tensors():
    model = tiny.model("llama")
    pruned = apply(model, find_architecture(model.config), units(BLOCKS))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in pruned.parameters()} < own


def test_any_even_run_of_sublayers_packs_into_whole_blocks():
    model = tiny.model("llama")
    architecture = find_architecture(model.config)
    order = architecture.units(tiny.NUM_BLOCKS)
    for start, length in itertools.product(range(len(order)), (2, 4, 6)):
        removed = order[start : start + length]
        if len(removed) == length:
            packed = pack(order, removed, architecture)
            assert is_dense(packed, architecture)
            assert len(packed) == tiny.NUM_BLOCKS - length // 2
    assert not is_dense(pack(order, [Unit(2, "ffn")], architecture), architecture)


def test_parallel_branches_stay_in_their_block():
    architecture = find_architecture(tiny.config("gpt_neox"))
    packed = pack(architecture.units(4), units("0.ffn 1.attn"), architecture)
    assert [block.sources for block in packed] == [
        {"attn": 0},
        {"ffn": 1},
        {"attn": 2, "ffn": 2},
        {"attn": 3, "ffn": 3},
    ]


def test_removing_everything_or_what_is_not_there_is_refused():
    model = tiny.model("llama")
    architecture = find_architecture(model.config)
    with pytest.raises(InputError, match="nothing would remain"):
        apply(model, architecture, architecture.units(tiny.NUM_BLOCKS))
    with pytest.raises(InputError, match=r"9\.attn is no unit of this model: it has 0\.attn to 5\.ffn"):
        apply(model, architecture, [Unit(9, "attn")])


def test_a_configuration_that_names_blocks_by_index_is_refused():
    model = tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scaled by the index of their block"):
        apply(model, find_architecture(model.config), [Unit(1, "attn"), Unit(1, "ffn")])


def test_settings_of_blocks_by_index_are_refused():
    config = tiny.config("llama", per_layer_config={"2": {"skip": ["attention"]}})
    with pytest.raises(InputError, match=r"settings of their own by index \(per_layer_config\)"):
        check_removal(config, FAMILIES["llama"], units("1.attn 1.ffn"))


def test_the_kinds_of_feed_forward_parts_go_with_the_feed_forward_parts():
    kinds = ["dense", "sparse", "dense", "sparse", "sparse", "dense"]
    config = tiny.config("llama")
    config.mlp_layer_types, config.layer_types = kinds, [f"kind {layer}" for layer in range(6)]
    # A pair across blocks: attention 2 is left with the feed-forward part of 3.
    removed = units("2.ffn 3.attn")
    cut_config(config, pack(FAMILIES["llama"].units(6), removed, FAMILIES["llama"]), 6)
    assert config.mlp_layer_types == ["dense", "sparse", "sparse", "sparse", "dense"]
    assert config.layer_types == [f"kind {layer}" for layer in (0, 1, 2, 4, 5)]
