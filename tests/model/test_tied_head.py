"""A configuration that calls the head the embedding is believed only where the weights agree."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from depthcut.export import hf
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit


@pytest.fixture
def source(tmp_path):
    """A model with a head of its own, whose configuration says that it is the embedding."""
    folder = tiny.save(tmp_path / "source")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    return resolve(str(folder))


def test_another_head_is_loaded_written_and_said(source, tmp_path, capfd):
    model = source.load_model("cpu")
    head = load_file(source.folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, head) and not torch.equal(head, model.model.embed_tokens.weight)
    assert "hold a head of their own, though its config.json says that it is the embedding" in capfd.readouterr().err
    pruned = apply(model, source.architecture, [Unit(2, "attn"), Unit(2, "ffn")])
    hf.write_directory(pruned, source.load_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load_file(tmp_path / "model.safetensors")["lm_head.weight"], head)


def test_a_head_that_is_the_embedding_stays_tied(tmp_path, capfd):
    model = resolve(str(tiny.save(tmp_path / "source", tie_word_embeddings=True))).load_model("cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings and "head" not in capfd.readouterr().err
