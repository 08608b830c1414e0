"""What a 16-bit checkpoint stores in float32 keeps dtype and bytes, whatever it is computed in."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from depthcut.export import hf
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.surgery import apply
from depthcut.types import Unit

REMOVED_BLOCK = 2
ISLANDS = {
    # A router and its bias, which transformers computes in float32 whatever it is asked for.
    "glm4_moe": ("mlp.gate.weight", "e_score_correction_bias"),
    # Decay rates and skips of a state space.
    "mamba2": ("A_log", "dt_bias", ".D"),
    # On loading, names change and experts are joined.
    "mixtral": ("block_sparse_moe.gate.weight",),
}


pytestmark = pytest.mark.usefixtures("quick_reload")


def stored(folder, family, names, dtype=torch.float32):
    """A bfloat16 checkpoint in which the tensors of some names are of another precision; with its tensors."""
    folder.mkdir()
    hf.write_directory(tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY).to(torch.bfloat16), tiny.tokenizer(), folder)
    tensors = load_file(folder / "model.safetensors")
    chosen = [name for name in tensors if name.endswith(names)]
    assert chosen
    for name in chosen:
        tensors[name] = torch.rand(tensors[name].shape, dtype=torch.float32).to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return resolve(str(folder)), tensors


def expected(tensors):
    """The tensors of all blocks but one, under their new names."""

    def renamed(match):
        return f"layers.{int(match[1]) - (int(match[1]) > REMOVED_BLOCK)}."

    return {
        re.sub(r"layers\.(\d+)\.", renamed, name): tensor
        for name, tensor in tensors.items()
        if f"layers.{REMOVED_BLOCK}." not in name
    }


@pytest.mark.parametrize("computed", ["bfloat16", "float32", "paged"])
@pytest.mark.parametrize("family", ISLANDS)
def test_every_tensor_is_written_as_it_was_stored(tmp_path, family, computed):
    _, tensors = stored(tmp_path / "source", family, ISLANDS[family])
    source = resolve(str(tmp_path / "source"), dtype="auto" if computed == "paged" else computed)
    assert str(source.written_dtype) == "torch.bfloat16"
    model = source.load_model("cpu", Pager(0) if computed == "paged" else None)
    pruned = apply(model, source.architecture, [Unit(REMOVED_BLOCK, kind) for kind in source.architecture.branches])
    hf.write_model(pruned, tmp_path)
    found, wanted = load_file(tmp_path / "model.safetensors"), expected(tensors)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    hf.verify_directory(tmp_path, pruned, tiny.samples(num_samples=1).input_ids % tiny.BYTE_VOCABULARY)
    assert all(parameter.dtype == model.dtype for parameter in model.parameters())


def test_a_bias_that_is_stored_in_16_bits_stays_in_16_bits(tmp_path):
    # In memory it is float32, since transformers asks for that.
    source, tensors = stored(tmp_path / "source", "glm4_moe", ("e_score_correction_bias",), torch.bfloat16)
    model = source.load_model("cpu")
    assert {buffer.dtype for name, buffer in model.named_buffers() if "correction" in name} == {torch.float32}
    hf.write_model(model, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in tensors.items()}


def test_what_a_repair_changes_is_written_as_changed(tmp_path):
    source, _ = stored(tmp_path / "source", "glm4_moe", ("mlp.gate.weight",))
    model = source.load_model("cpu")
    gate = model.model.layers[4].mlp.gate
    gate.weight = torch.nn.Parameter(torch.full_like(gate.weight, 0.5))
    hf.write_model(model, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found["model.layers.4.mlp.gate.weight"].unique().tolist() == [0.5]
    assert found["model.layers.5.mlp.gate.weight"].dtype == torch.float32
