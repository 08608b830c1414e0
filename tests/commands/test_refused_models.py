"""Models that are not there, not whole or not for pruning are refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny


@pytest.fixture(scope="module")
def gpt_neox(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "gpt_neox", "gpt_neox")


@pytest.mark.usefixtures("weights_stay_unread")
class TestModel:
    def test_unknown_name(self, prune_error):
        assert "no model 'smolm2'" in (sentence := prune_error(model="smolm2"))
        assert "did you mean 'smollm2'?" in sentence

    def test_no_such_path(self, prune_error, tmp_path):
        assert "there is no model at" in prune_error(model=tmp_path / "nothing" / "here")
        assert "there is no file" in prune_error(model=tmp_path / "nothing.gguf")

    def test_directory_without_a_model(self, prune_error, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "holds no model: it has no config.json" in prune_error(model=tmp_path / "empty")

    def test_directory_without_weights(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "model.bin")
        assert "holds no safetensors weights" in prune_error(model=folder)

    def test_directory_without_a_tokenizer(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
        assert "cannot read the tokenizer of" in prune_error(model=folder)

    def test_tokenizer_of_another_model(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        other = tiny.save(tmp_path / "other", vocab_size=tiny.VOCABULARY)
        shutil.copy(other / "model.safetensors", folder)
        shutil.copy(other / "config.json", folder)
        assert "the model knows 97 tokens; they do not belong together" in prune_error(model=folder)

    @pytest.mark.parametrize(
        ("model_type", "reason"),
        [
            ("zamba2", "its blocks share attentions"),
            ("t5", "they have an encoder beside the decoder"),
            ("hrm_text", "it runs its blocks several times over"),
        ],
    )
    def test_unsupported_family_says_why(self, prune_error, llama, tmp_path, model_type, reason):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert f"models of type '{model_type}' cannot be pruned: {reason}" in prune_error(model=folder)

    def test_family_that_transformers_does_not_know(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
        assert "has no causal language model of that type; give another model" in prune_error(model=folder)

    def test_configuration_that_is_no_json(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text("{")
        assert "cannot read the configuration of" in prune_error(model=folder)

    @pytest.mark.parametrize("kept", [5, 1000, -100])
    def test_truncated_safetensors(self, prune_error, llama, tmp_path, kept):
        folder = shutil.copytree(llama, tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        assert f"{weights} is damaged" in prune_error(model=folder)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model"])
    def test_file_that_is_no_gguf(self, prune_error, tmp_path, content):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        assert f"{file} is no GGUF file" in prune_error(model=file)

    @pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\0\0\0" + 16 * b"\xff"])
    def test_truncated_gguf(self, prune_error, tmp_path, content):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        assert f"{file} is damaged" in prune_error(model=file)

    def test_pairs_of_parallel_branches(self, prune_error, gpt_neox):
        sentence = prune_error("--unit", "pair", "--method", "sequential", model=gpt_neox)
        assert "attention and feed-forward part of a block read the same stream" in sentence


class TestWeights:
    def test_a_missing_tensor(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.3.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "lack model.layers.3.mlp.up_proj.weight" in prune_error(model=folder)

    def test_a_tensor_of_another_shape(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(7)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "makes model.norm.weight 32, and the files hold 7" in prune_error(model=folder)

    @pytest.mark.parametrize("calibration", ["stdlib", "self"])
    @pytest.mark.parametrize(
        ("tensor", "where"),
        [
            ("model.layers.3.mlp.up_proj.weight", "3.ffn"),
            ("model.embed_tokens.weight", "the embedding"),
            ("lm_head.weight", "the output"),
        ],
    )
    def test_nan(self, prune_error, llama, tmp_path, tensor, where, calibration):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors[tensor].fill_(torch.nan)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        sentence = prune_error("--calibration", calibration, model=folder)
        assert f"the activations at {where} are not finite (NaN or infinite)" in sentence
        assert "--dtype float32" in sentence

    def test_nan_on_a_token_that_the_probe_does_not_see(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        token = tiny.tokenizer()("~")["input_ids"][0]
        tensors["model.embed_tokens.weight"][token] = torch.nan
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        text = tmp_path / "text.txt"
        text.write_text("A plain beginning of some length, and then a token without a vector ~ " * 4)
        options = ["--calibration", f"{text},order=first", "--calibration-length", "48"]
        assert "the activations at 0.attn are not finite" in prune_error(*options, model=folder)
