"""Layers that a quantisation names by block keep their precision when blocks leave, and gone ones lose their name."""

import pytest

import tiny
from depthcut.model.architectures import FAMILIES
from depthcut.model.packing import pack
from depthcut.surgery import apply, check_removal
from depthcut.types import InputError, Unit

# Blocks 1 and, as a pair across blocks, the feed-forward part of 3 with the attention of 4: block 2 of the rest is
# attention 3 and feed-forward part 4.
REMOVED = [Unit(1, "attn"), Unit(1, "ffn"), Unit(3, "ffn"), Unit(4, "attn")]


def config(**entries):
    found = tiny.config("llama")
    found.quantization_config = {"quant_method": "of a test"} | entries
    return found


def renumbered(**entries):
    model = tiny.model("llama")
    model.config.quantization_config = {"quant_method": "of a test"} | entries
    given = dict(model.config.quantization_config)
    found = apply(model, FAMILIES["llama"], REMOVED).config.quantization_config
    assert model.config.quantization_config == given
    return found


def test_what_a_block_is_made_of_is_as_these_tests_say():
    packed = pack(FAMILIES["llama"].units(6), REMOVED, FAMILIES["llama"])
    assert [block.sources for block in packed][2] == {"attn": 3, "ffn": 4}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.0.mlp.down_proj", ["model.layers.0.mlp.down_proj"]),
        ("model.layers.1.mlp", []),
        ("model.layers.2", ["model.layers.1"]),
        ("model.layers.5.self_attn.q_proj", ["model.layers.3.self_attn.q_proj"]),
        # Their blocks have parted: what is left of each is named by itself.
        ("model.layers.3", ["model.layers.2.input_layernorm", "model.layers.2.self_attn"]),
        ("model.layers.4.mlp.up_proj", ["model.layers.2.mlp.up_proj"]),
        ("model.layers.3.mlp.up_proj", []),
        ("model.layers.4.self_attn", []),
        # The first index is the block's; a pattern without one is of all blocks.
        ("model.layers.2.mlp.experts.5.w1", ["model.layers.1.mlp.experts.5.w1"]),
        (r"re:.*layers\.2\.mlp.*", [r"re:.*layers\.1\.mlp.*"]),
        ("re:.*gate$", ["re:.*gate$"]),
        (r"re:model\.layers\.\d+\.mlp", [r"re:model\.layers\.\d+\.mlp"]),
    ],
)
@pytest.mark.parametrize("entry", ["ignore", "llm_int8_skip_modules", "modules_to_not_convert"])
def test_names_follow_their_layers(entry, before, after):
    assert renumbered(**{entry: [before]})[entry] == after


def test_patterns_keep_what_they_stand_for():
    given = {r"-:model\.layers\.1\..*": {}, r"+:model\.layers\.5\..*gate.*": {"bits": 8}, r"-:.*down_proj": {}}
    assert renumbered(dynamic=given)["dynamic"] == {
        r"+:model\.layers\.3\..*gate.*": {"bits": 8},
        r"-:.*down_proj": {},
    }


@pytest.mark.parametrize(
    "entry", [r"re:.*layers\.(1|2)\.mlp", r"re:model\.layers\.[0-3]\.", r"re:.*layers\.3\..*proj.*"]
)
def test_patterns_that_cannot_follow_are_refused_before_weights_load(entry):
    with pytest.raises(InputError, match=r"cannot be counted anew, since its quantization_config names layers as"):
        check_removal(config(ignore=[entry]), FAMILIES["llama"], REMOVED)
