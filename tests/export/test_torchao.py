"""Models that torchao quantised go in and out in its own layout: kept tensors byte for byte, read again as before."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, TorchAoConfig

import tiny
from depthcut.export import hf
from depthcut.model.bypass import bypass
from depthcut.model.load import resolve
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.surgery import apply
from depthcut.types import InputError
from stored_models import PAIRS, before_pairs, contents, logits

quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: make test-readers")

KINDS = {
    "int8": lambda: quantization.Int8WeightOnlyConfig(),
    "int8 with int8 inputs": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
    "fp8": lambda: quantization.Float8WeightOnlyConfig(),
}


def save(folder, kind):
    """Writes a model as torchao's users do."""
    plain = tiny.save(folder.with_name("plain"), "llama", intermediate_size=64)
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, device_map="cpu", quantization_config=TorchAoConfig(KINDS[kind]())
    )
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def noted(folder):
    """What the file says of each tensor beside its values."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pruned_as_it_is_stored(kind, tmp_path, monkeypatch):
    """Attention of one block and feed-forward part of another; one kind is reloaded in a fresh process."""
    if kind != "int8":
        tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    folder = save(tmp_path / "dense", kind)
    source = resolve(str(folder))
    assert source.provenance.quantisation == "torchao"
    dense = source.load_model("cpu")
    with bypass(dense, source.architecture, PAIRS):
        bypassed = logits(dense)
    pruned = apply(dense, source.architecture, PAIRS)
    assert torch.equal(logits(pruned), bypassed)
    (tmp_path / "out").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", pruned, tiny.samples(num_samples=1).input_ids)
    before, after = contents(folder), contents(tmp_path / "out")
    assert len(after) < len(before)
    assert {name: before[before_pairs(name)] for name in after} == after
    said, says = noted(folder), noted(tmp_path / "out")
    assert all(says[name] == said[before_pairs(name)] for name in says if name.startswith("model."))
    assert torch.equal(logits(resolve(str(tmp_path / "out")).load_model("cpu")), bypassed)


def test_a_run_takes_it_and_a_repair_is_refused(tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    folder = save(tmp_path / "dense", "int8")
    options = {"method": "shortgpt", "model": str(folder)} | tiny.SHORT_RUN
    result = prune_model(Recipe.build(**options), tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert entries["num_hidden_layers"] == 4
    given = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert entries["quantization_config"] == given
    assert torch.equal(logits(resolve(str(tmp_path / "out")).load_model("cpu")), logits(result.model))
    with pytest.raises(InputError, match="cannot write them into torchao ones; repair the model before"):
        prune_model(Recipe.build(**options, repair="refit"), tmp_path / "repaired")
