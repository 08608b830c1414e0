"""`depthcut doctor` says of a model what a run would find, without reading a weight."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import tiny
from depthcut.cli import app
from depthcut.model.load import ModelSource
from depthcut.types import InputError
from export import gguf_models
from model import multimodal


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", None)


def said(*words, refused=False):
    ended = CliRunner().invoke(app, ["doctor", *map(str, words)])
    if refused:
        assert isinstance(ended.exception, InputError)
        return str(ended.exception)
    assert ended.exit_code == 0, ended.exception
    return ended.stdout


def findings(*words):
    return json.loads(said(*words, "--json"))


def allowed(choices):
    return [choice["name"] for choice in choices if not choice["refusal"]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


def test_a_directory(llama):
    found = findings(llama)
    model = tiny.model("llama", vocab_size=tiny.BYTE_VOCABULARY)
    assert (found["model"]["model_type"], found["model"]["num_blocks"]) == ("llama", 6)
    assert (found["parts"], found["context"]) == (["attn", "ffn"], 64)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["weight_bytes"] == 4 * found["parameters"]
    # Keys and values of 2 heads of 8 numbers in float32, in 6 blocks.
    assert found["kv_bytes_per_token"] == 2 * 2 * 8 * 4 * 6
    assert allowed(found["units"]) == ["block", "pair", "attn", "ffn", "sublayer"]
    assert {"refit", "lora"} <= set(allowed(found["repairs"]))
    assert {"hf", "gguf", "zeroed"} <= set(allowed(found["exports"]))
    (text_only,) = [choice for choice in found["exports"] if choice["name"] == "text-only"]
    assert "a llama model is a language model and nothing else" in text_only["refusal"]
    assert list(found["default_run"]["seconds"])[0] == "load"
    assert found["default_run"]["memory_bytes"] > found["weight_bytes"]


def test_a_person_reads_the_same(llama):
    text = " ".join(said(llama).split())
    assert f"model {llama} (directory): llama, 6 blocks blocks of attn and ffn" in text
    assert "units block, pair, attn, ffn, sublayer" in text
    assert "not text-only: a llama model is a language model" in text
    assert f"run depthcut prune {llama} --remove 25%: about" in text


def test_a_family_of_parallel_branches_has_no_pairs(tmp_path):
    found = findings(tiny.save(tmp_path / "model", "gpt_neox"))
    assert "pair" not in allowed(found["units"]) and "block" in allowed(found["units"])


def test_a_multimodal_model(tmp_path):
    found = findings(multimodal.save("gemma3", tmp_path / "model"))
    assert found["carried"] == "the decoder stands inside of a Gemma3, which is kept"
    assert "text-only" in allowed(found["exports"])


def test_a_quantised_directory(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    entries = json.loads((folder / "config.json").read_text())
    entries["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(entries))
    found = findings(folder)
    assert found["model"]["quantisation"] == "int8"
    assert allowed(found["repairs"]) == []
    assert "cannot write them into int8 ones" in found["repairs"][0]["refusal"]


def test_a_gguf(tmp_path):
    model = gguf_models.make()
    gguf_models.form().write(model, tiny.tokenizer(), tmp_path)
    (file,) = tmp_path.glob("*.gguf")
    found = findings(file)
    assert (found["model"]["format"], found["model"]["num_blocks"]) == ("gguf", 6)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_hub_model_in_the_cache(llama, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept, revision = tmp_path / "models--someone--tiny", "0" * 40
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text(revision)
    shutil.copytree(llama, kept / "snapshots" / revision)
    found = findings("someone/tiny")
    assert (found["model"]["format"], found["model"]["revision"]) == ("hub", revision)
    assert found["base_model"] == "someone/tiny"


def test_a_configuration_without_weights(llama, tmp_path):
    shutil.copy(llama / "config.json", tmp_path)
    assert findings(tmp_path)["has_weights"] is False
    assert "none here: only its configuration" in said(tmp_path)


def test_what_cannot_be_pruned_is_refused_as_everywhere(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "models of type 't5' cannot be pruned: they have an encoder" in said(folder, refused=True)
