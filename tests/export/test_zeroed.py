"""Zeros in place of what is absent: a stock checkpoint that any reader of the family runs, with the same answers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from depthcut.export import EXPORTS, VerificationError, hf
from depthcut.export.zeroed import filled
from depthcut.model.architectures import FAMILIES, find_architecture
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit

# None of these lets sublayers pair anew, so that block indices stay those of the dense model.
REMOVED = [Unit.parse(name) for name in ("0.attn", "1.ffn", "3.attn", "5.ffn")]
FORM = EXPORTS.find("zeroed").make()


pytestmark = pytest.mark.usefixtures("quick_reload")


def write(family, folder, removed=REMOVED):
    dense = tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY)
    model = apply(dense, find_architecture(dense.config), removed)
    folder.mkdir(exist_ok=True)
    FORM.check(model.config)
    FORM.write(model, tiny.tokenizer(), folder)
    return model, folder


def verify(model, folder):
    FORM.verify(folder, model, tiny.samples(num_samples=1).input_ids)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
def test_a_stock_checkpoint_answers_bit_for_bit(family, tmp_path):
    sublayers = tiny.removals(FAMILIES[family])
    model, folder = write(family, tmp_path / "written", sublayers.get("attn", sublayers["block"]))
    verify(model, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family
    assert "removed_sublayers" not in config and "auto_map" not in config
    assert not list(folder.glob("*.py"))
    stock, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    ids = tiny.samples().input_ids
    assert torch.equal(stock(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt2", "starcoder2"])
def test_everything_of_an_absent_sublayer_is_zero_and_nothing_else_changes(family, tmp_path):
    model, folder = write(family, tmp_path / "written")
    stock = AutoModelForCausalLM.from_pretrained(folder)
    kept = dict(model.named_parameters())
    architecture = FAMILIES[family]
    absent = {
        f"{architecture.blocks}.{unit.layer}.{module}."
        for unit in REMOVED
        for module in architecture.branches[unit.kind].modules
    }
    for name, parameter in stock.named_parameters():
        if name.startswith(tuple(absent)):
            assert name not in kept
            assert not parameter.any()
        else:
            assert torch.equal(parameter, kept[name])


@torch.no_grad()
def test_the_model_in_memory_stays_as_it_is():
    dense = tiny.model("llama")
    model = apply(dense, find_architecture(dense.config), REMOVED)
    before = model.config.to_dict(), [name for name, _ in model.named_parameters()]
    whole = filled(model)
    assert (model.config.to_dict(), [name for name, _ in model.named_parameters()]) == before
    assert type(whole) is type(dense)
    assert whole.model.layers[2].mlp.up_proj.weight is model.model.layers[2].mlp.up_proj.weight


def test_whole_blocks_are_written_as_they_are(tmp_path):
    model, folder = write("llama", tmp_path / "written", removed=[Unit(2, "ffn"), Unit(3, "attn")])
    assert filled(model) is model
    verify(model, folder)


def test_a_model_read_from_its_directory_is_filled_too(tmp_path):
    tiny.save(tmp_path / "dense", "qwen2")
    source = resolve(str(tmp_path / "dense"))
    pruned = apply(source.load_model("cpu"), source.architecture, REMOVED)
    (tmp_path / "pruned").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "pruned")
    loaded = resolve(str(tmp_path / "pruned")).load_model("cpu")
    (tmp_path / "zeroed").mkdir()
    FORM.write(loaded, tiny.tokenizer(), tmp_path / "zeroed")
    verify(loaded, tmp_path / "zeroed")
    assert AutoConfig.from_pretrained(tmp_path / "zeroed").model_type == "qwen2"


def test_a_weight_that_is_not_zero_is_noticed(tmp_path):
    model, folder = write("llama", tmp_path / "written")
    tensors = load_file(folder / "model.safetensors")
    for name in ("up_proj", "gate_proj", "down_proj"):
        tensors[f"model.layers.5.mlp.{name}.weight"].fill_(0.1)
    tensors["model.layers.5.post_attention_layernorm.weight"].fill_(1.0)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="the reloaded logits differ from those in memory"):
        verify(model, folder)


def test_it_says_that_nothing_is_gained():
    assert "no gain" in FORM.note
    assert "no gain" in EXPORTS.find("zeroed").summary
