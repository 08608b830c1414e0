"""Families whose blocks go as a whole: what a removal leaves is what skipping gave, also where much hangs on them."""

import copy
import json

import pytest
import torch
from torch import nn

import depthcut
import shape_parts
import tiny
from depthcut.model.architectures import find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.proof import prove
from depthcut.model.stream import DecoderStream
from depthcut.surgery import apply, check_removal
from depthcut.types import InputError, Unit

IDS = tiny.samples(2).input_ids


def blocks(*layers):
    return [Unit(layer, "block") for layer in layers]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "layers"), [("rwkv", (0, 3)), ("gemma4_text", (0, 4)), ("gemma3n_text", (2, 4)), ("zaya", (0, 1))]
)
def test_bypassed_is_removed_bit_for_bit(family, layers):
    model = tiny.model(family)
    architecture = find_architecture(model.config)
    prove(DecoderStream(model, architecture), IDS[:1])
    with bypass(model, architecture, blocks(*layers)):
        bypassed = model(input_ids=IDS, use_cache=False).logits
    stream = DecoderStream(model, architecture)
    batch = stream.prepare(IDS)
    final = stream.run(batch, blocks(*layers))
    resumed = torch.cat([piece for _, piece in stream.logits(batch, final)], dim=1)
    torch.testing.assert_close(resumed, bypassed, rtol=0, atol=tiny.ROUNDING * float(bypassed.abs().max()))
    pruned = apply(model, architecture, blocks(*layers))
    assert torch.equal(pruned(input_ids=IDS, use_cache=False).logits, bypassed)


@pytest.mark.parametrize("family", ["rwkv", "gemma4_text"])
@pytest.mark.parametrize("method", ["shortgpt", "greedy"])
def test_a_run_prunes_them_and_what_is_written_decodes_alike(family, method, tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    changes = {"rescale_every": 2} if family == "rwkv" else {"vocab_size_per_layer_input": tiny.BYTE_VOCABULARY}
    source = tiny.save(tmp_path / "dense", family, **changes)
    result = depthcut.prune(str(source), output=tmp_path / "out", method=method, unit="block", **tiny.SHORT_RUN)
    assert len(result.plan.removed) == 2 and {unit.kind for unit in result.plan.removed} == {"block"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    if family == "rwkv":
        assert config["rescale_every"] == 0


@torch.no_grad()
def test_rwkv_without_halving_is_the_same_but_for_the_epsilon_of_its_norms():
    halving = tiny.model("rwkv", rescale_every=2)
    plain = copy.deepcopy(halving)
    plain.config.rescale_every = 0
    for module in (*halving.modules(), *plain.modules()):
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    with pytest.raises(InputError, match="a rwkv model whose rescale_every is not 0, since its blocks then depend"):
        check_removal(halving.config, find_architecture(halving.config), blocks(1))
    assert torch.equal(plain(input_ids=IDS).logits, halving(input_ids=IDS).logits)


def test_blocks_that_others_read_stay():
    config = tiny.config("gemma4_text")
    architecture = find_architecture(config)
    assert set(architecture.staying) == {1, 3, 5} and architecture.last_entry == 1
    with pytest.raises(InputError, match="block 3 cannot leave this model: blocks at the end read its keys"):
        check_removal(config, architecture, blocks(3))
    with pytest.raises(InputError, match="block 5 cannot leave this model: the last one has to be one with full"):
        check_removal(config, architecture, blocks(5))


def test_shares_of_tables_and_settings_of_single_blocks_leave_with_them():
    model = tiny.model("gemma4_text")
    pruned = apply(model, find_architecture(model.config), blocks(0, 4))
    width = shape_parts.SHARING["hidden_size_per_layer_input"]
    columns = torch.cat([torch.arange(layer * width, (layer + 1) * width) for layer in (1, 2, 3, 5)])
    dense, cut = (made.model.embed_tokens_per_layer for made in (model, pruned))
    assert torch.equal(cut.weight, dense.weight[:, columns]) and cut.embedding_dim == 4 * width
    assert model.config.num_kv_shared_layers == 2 and pruned.config.num_kv_shared_layers == 1
    heads = [int(made.head_dim) for made in pruned.config.per_layer_config]
    assert heads == [16, 8, 8, 16]


def test_a_factor_of_the_number_of_blocks_is_written_as_what_it_was():
    model = tiny.model("minicpm3")
    pruned = apply(model, find_architecture(model.config), [Unit(1, "attn"), Unit(1, "ffn")])
    assert pruned.config.scale_depth / 5**0.5 == model.config.scale_depth / 6**0.5
