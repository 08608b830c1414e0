"""Sizes of units must be those of what they are: counted on real caches."""

import pytest
import torch
from transformers import DynamicCache

import tiny
from depthcut.model.architectures import find_architecture
from depthcut.model.units import measure_sizes
from depthcut.types import Unit


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gpt_bigcode", "falcon", "mpt", "gptj", "bamba", "lfm2", "nemotron_h"]
)
def test_kv_bytes_are_those_of_the_cache(family):
    model = tiny.model(family)
    sizes = measure_sizes(model, find_architecture(model.config))
    cache = DynamicCache(config=model.config)
    model(input_ids=tiny.samples(1, 12).input_ids, past_key_values=cache, use_cache=True)
    held = [
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if getattr(layer, "keys", None) is not None
    ]
    assert sizes.kv_bytes_per_token == sum(held) // 12
    assert sizes.kv_bytes_per_token > 0


def test_compressed_keys_count_as_engines_keep_them():
    model = tiny.model("deepseek_v3")
    sizes = measure_sizes(model, find_architecture(model.config))
    assert sizes.units[Unit(2, "attn")].kv_bytes_per_token == (16 + 8) * 4


def test_state_space_models_keep_no_keys():
    model = tiny.model("mamba")
    assert measure_sizes(model, find_architecture(model.config)).kv_bytes_per_token == 0


def test_a_norm_that_branches_share_goes_with_the_block():
    model = tiny.model("phi")
    sizes = measure_sizes(model, find_architecture(model.config))
    block = model.model.layers[2]
    assert sizes.units[Unit(2, "ffn")].parameters == sum(p.numel() for p in block.mlp.parameters())
    assert sum(sizes.units[Unit(2, kind)].parameters for kind in ("attn", "ffn")) == sum(
        p.numel() for p in block.parameters()
    )
