"""An adapter is merged into the model that it is of, and into no other that it would fit by chance."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tiny
from depthcut.export import hf
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

TARGETS = ["q_proj", "down_proj"]


def trained(source, folder):
    """An adapter of a model in which every map is changed; and the logits of both together."""
    torch.manual_seed(0)
    model = get_peft_model(source.load_model("cpu"), LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()(input_ids=ids()).logits


def ids():
    return tiny.samples(num_samples=1).input_ids % tiny.BYTE_VOCABULARY


@pytest.fixture
def dense(tmp_path):
    return resolve(str(tiny.save(tmp_path / "dense")))


@pytest.fixture
def pruned(dense, tmp_path):
    """The same without a block, as a run writes it."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    removed = [Unit(2, "attn"), Unit(2, "ffn")]
    model = apply(dense.load_model("cpu"), dense.architecture, removed)
    base = dense.provenance.model_dump(mode="json")
    model.config.depthcut = {"version": "0", "base_model": base, "removed": [str(unit) for unit in removed]}
    hf.write_directory(model, dense.load_tokenizer(), folder)
    return resolve(str(folder))


def told(*arguments, **settings):
    with pytest.raises(InputError) as error:
        resolve(*arguments, **settings)
    return str(error.value)


@torch.no_grad()
def test_it_is_merged_on_request(dense, tmp_path):
    wanted = trained(dense, tmp_path / "adapter")
    recipe = Recipe.build(model=str(dense.folder), adapter=str(tmp_path / "adapter"), remove="1", device="cpu")
    source = find_model(recipe)
    found = source.load_model("cpu")(input_ids=ids()).logits
    assert (found - wanted).abs().max() <= tiny.ROUNDING * wanted.abs().max()
    assert (found - dense.load_model("cpu")(input_ids=ids()).logits).abs().max() > 0.01
    # A plan for one is none for the other.
    assert source.provenance.digest != dense.provenance.digest
    assert source.provenance.adapter == str(tmp_path / "adapter")


def test_an_adapter_of_the_dense_model_does_not_fit_the_pruned_one_by_chance(dense, pruned, tmp_path):
    trained(dense, tmp_path / "adapter")
    # peft itself takes it: every layer of the pruned model finds one of that index.
    assert PeftModel.from_pretrained(pruned.load_model("cpu"), tmp_path / "adapter")
    sentence = told(str(pruned.folder), adapter=str(tmp_path / "adapter"))
    assert f"is of {dense.folder}, and the blocks of {pruned.folder} are counted anew" in sentence
    assert f"depthcut export {pruned.folder} --to adapter,path={tmp_path / 'adapter'}" in sentence


@torch.no_grad()
def test_an_adapter_of_the_pruned_model_fits_it(pruned, tmp_path):
    wanted = trained(pruned, tmp_path / "adapter")
    found = resolve(str(pruned.folder), adapter=str(tmp_path / "adapter")).load_model("cpu")(input_ids=ids()).logits
    assert (found - wanted).abs().max() <= tiny.ROUNDING * wanted.abs().max()


def test_an_adapter_of_another_model_is_refused_before_weights_load(dense, tmp_path):
    deeper = resolve(str(tiny.save(tmp_path / "deeper", num_hidden_layers=8)))
    trained(deeper, tmp_path / "adapter")
    sentence = told(str(dense.folder), adapter=str(tmp_path / "adapter"))
    assert "is of another model: it changes model.layers.6, which" in sentence
    assert f"its adapter_config.json names {deeper.folder}" in sentence


def test_what_cannot_be_merged_says_why(dense, tmp_path):
    assert "holds no adapter of peft: it has no adapter_config.json" in told(str(dense.folder), adapter=str(tmp_path))
    trained(dense, tmp_path / "adapter")
    source = resolve(str(dense.folder), adapter=str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="an adapter is merged in memory; give a larger --memory-budget"):
        source.load_model("cpu", Pager(0))
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    assert "it has no adapter_model.safetensors (pickles are not read)" in told(
        str(dense.folder), adapter=str(tmp_path / "adapter")
    )
    entries = json.loads((dense.folder / "config.json").read_text())
    entries["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (dense.folder / "config.json").write_text(json.dumps(entries))
    sentence = told(str(dense.folder), adapter=str(tmp_path / "adapter"))
    assert "is stored as int8, and merging an adapter changes weights; give the model unquantised" in sentence
