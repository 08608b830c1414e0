"""What is written must be what is in memory: verification has to notice a change and to say which."""

import json
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from depthcut.export import VerificationError, hf
from depthcut.model.architectures import find_architecture
from depthcut.surgery import apply
from depthcut.types import Unit

pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture
def written(tmp_path):
    """A pruned model in memory and its directory."""
    dense = tiny.model("gemma3_text", vocab_size=tiny.BYTE_VOCABULARY)
    model = apply(dense, find_architecture(dense.config), [Unit(2, "attn"), Unit(2, "ffn")])
    hf.write_directory(model, tiny.tokenizer(), tmp_path)
    return model, tmp_path


def verify(model, folder):
    hf.verify_directory(folder, model, tiny.samples(num_samples=1).input_ids)


def change_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def change_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_what_was_just_written_passes(written):
    verify(*written)


def test_what_was_just_written_passes_in_a_fresh_process(written, monkeypatch):
    monkeypatch.undo()
    verify(*written)


def test_a_changed_weight_is_noticed(written):
    model, folder = written
    change_tensors(folder, lambda tensors: tensors["model.layers.4.mlp.down_proj.weight"][0, :1].mul_(1.01))
    with pytest.raises(VerificationError, match="the reloaded logits differ from those in memory by up to"):
        verify(model, folder)


def test_a_missing_tensor_is_named(written):
    model, folder = written
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight"))
    with pytest.raises(VerificationError, match=r"lacks the tensor model\.layers\.1\.self_attn\.q_norm\.weight"):
        verify(model, folder)


def test_a_tensor_that_is_not_the_models_is_named(written):
    model, folder = written
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.9.mlp.bias": torch.ones(3)}))
    with pytest.raises(VerificationError, match=r"holds beside the model's the tensor model\.layers\.9\.mlp\.bias"):
        verify(model, folder)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"layer_types": tiny.SLIDING["layer_types"][:5]}, "layer_types"),
        # Longer than the probe: no logit shows it.
        ({"sliding_window": 63}, "sliding_window"),
        ({"max_position_embeddings": 32}, "max_position_embeddings"),
        ({"eos_token_id": 3}, "eos_token_id"),
    ],
)
def test_a_wrong_configuration_entry_is_named(written, entries, named):
    model, folder = written
    change_config(folder, **entries)
    with pytest.raises(VerificationError, match=f"configuration differs from the one in memory in {named}$"):
        verify(model, folder)


def test_a_block_count_that_is_not_the_files_is_noticed(written):
    model, folder = written
    change_config(folder, num_hidden_layers=4, layer_types=model.config.layer_types[:4])
    with pytest.raises(VerificationError, match=r"holds beside the model's the tensor model\.layers\.4\."):
        verify(model, folder)


def test_a_directory_that_does_not_load_says_why(written):
    model, folder = written
    (folder / "config.json").write_text("{")
    with pytest.raises(VerificationError, match="the written model does not load in a fresh process: .*config"):
        verify(model, folder)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_readable_as_far_as_the_umask_lets(tmp_path, monkeypatch, umask, mode):
    monkeypatch.setattr(hf.os, "umask", lambda _: umask)
    hf.write_directory(tiny.model("llama"), tiny.tokenizer(), tmp_path)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {mode}
