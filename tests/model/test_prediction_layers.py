"""Layers behind the last block that predict further tokens are left out, and run, results and card say so."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny
from depthcut.cli import app
from depthcut.model.headers import TensorHeader
from depthcut.model.layer_config import without_prediction_layers
from depthcut.model.prediction import find_prediction_layers
from depthcut.results import Measurement, read_list


@pytest.mark.parametrize(
    ("names", "entries", "found"),
    [
        # DeepSeek-V3, GLM 4.5, MiMo: as if they were blocks.
        (["model.layers.6.eh_proj.weight", "model.layers.7.enorm.weight"], {"num_nextn_predict_layers": 2}, (2, 2)),
        (["model.layers.6.eh_proj.weight", "model.layers.7.enorm.weight"], {}, (2, 2)),
        # Qwen3-Next and Qwen3.5, also inside of what reads images.
        (["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"], {"mtp_num_hidden_layers": 1}, (1, 2)),
        (["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"], {}, (1, 2)),
        (["model.language_model.layers.6.enorm.weight"], {}, (1, 1)),
        # Ernie 4.5, LongCat.
        (
            ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight"],
            {"num_nextn_predict_layers": 1},
            (1, 2),
        ),
        (["model.mtp.layers.0.eh_proj.weight"], {}, (1, 1)),
        (["model.layers.5.mlp.up_proj.weight", "model.visual.layers.9.norm.weight", "lm_head.weight"], {}, None),
    ],
    ids=str,
)
def test_they_are_known_by_where_files_keep_them(tmp_path, names, entries, found):
    stored = {name: TensorHeader((3, 4), "F32", tmp_path) for name in [*names, "model.layers.0.mlp.up_proj.weight"]}
    layers = find_prediction_layers(entries, stored, num_blocks=6)
    assert found == (layers and (layers.count, layers.tensors))
    assert layers is None or layers.parameters == 12 * layers.tensors


@pytest.mark.parametrize("name", ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"])
def test_a_configuration_is_told_that_there_are_none(name):
    config = tiny.config("llama")
    setattr(config, name, 1)
    without_prediction_layers(config)
    assert getattr(config, name) == 0


@pytest.fixture
def source(tmp_path):
    folder = tiny.save(tmp_path / "source", "deepseek_v3")
    tensors = load_file(folder / "model.safetensors")
    last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.5.")}
    behind = {name.replace("layers.5.", "layers.6."): tensor.clone() for name, tensor in last.items()}
    behind["model.layers.6.eh_proj.weight"] = torch.ones(32, 64)
    save_file(tensors | behind, folder / "model.safetensors", {"format": "pt"})
    entries = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("remove", ["1", "0"])
def test_a_run_says_that_they_are_left_out(source, tmp_path, monkeypatch, remove):
    tiny.reload_in_process(monkeypatch)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"steps": [{"remove": ["2.attn", "2.ffn"]}]}))
    out = tmp_path / "out"
    words = ["apply", str(source), str(plan), "-o", str(out), "--no-speed", "--steps", remove]
    short = ["--evaluation-samples", "1", "--evaluation-length", "16"]
    ended = CliRunner().invoke(app, [*words, *short], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    sentence = "left out: the layer behind the last block that predicts further tokens (MTP,"
    assert sentence in ended.stderr and "which transformers does not load" in ended.stderr
    counts = {
        row.model: row.value for row in read_list(Measurement, out / "results.json") if row.name == "prediction_layers"
    }
    assert counts == {"dense": 1, "pruned": 0}
    card = " ".join((out / "README.md").read_text().split())
    assert "Left out: the layers behind the last block that predict further tokens (MTP; 1 of them)" in card
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    blocks = 6 - int(remove)
    assert not [name for name in load_file(out / "model.safetensors") if f"layers.{blocks}." in name]
