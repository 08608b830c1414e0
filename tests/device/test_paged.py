"""A model that does not fit onto its accelerator: what it finds there is what the CPU finds in memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from device.processes import need_compiler, run_on

pytestmark = pytest.mark.device

SCRIPT = Path(__file__).parent / "paged.py"
ROUNDING = 64 * torch.finfo(torch.float32).eps
OPTIONS = {
    "unit": "block",
    "remove": "2",
    "method": "greedy,strategy=exhaustive",
    "calibration": "stdlib",
    "calibration_samples": 4,
    "calibration_length": 16,
    "batch_size": 4,
    "evaluation_samples": 2,
    "evaluation_length": 16,
    "repair_samples": 16,
    "speed": False,
    "dtype": "float32",
}
LAZY = {"unit": "sublayer", "method": "greedy", "repair": "none"}


def llama(folder, **sizes):
    """A random Llama's folder."""
    config = LlamaConfig(
        **sizes, num_attention_heads=8, num_key_value_heads=8, vocab_size=tiny.BYTE_VOCABULARY, dtype=torch.float32
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="200MB")
    tiny.tokenizer().save_pretrained(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def both(folder, model, limit, runs):
    """What is found in memory on the CPU, and on a stand-in that has so many bytes; with the folders of the weights."""
    need_compiler()
    found = []
    for device in ("cpu", "standin"):
        out = folder / device
        out.mkdir()
        child = run_on(device, SCRIPT, device, out, model, limit, json.dumps(runs))
        assert child.returncode == 0, child.stderr[-3000:]
        found.append(json.loads((out / "found.json").read_text()) | {"said": child.stderr, "folder": out})
    return found


def assert_same(expected, given, name):
    assert given[name]["plan"] == expected[name]["plan"]
    assert given[name]["objectives"] == pytest.approx(expected[name]["objectives"], rel=ROUNDING, abs=ROUNDING)
    weights, there = (load_file(found["folder"] / f"{name}.safetensors") for found in (expected, given))
    assert weights.keys() == there.keys()
    for tensor in weights:
        torch.testing.assert_close(there[tensor], weights[tensor], rtol=ROUNDING, atol=ROUNDING)


def assert_read_once(rounds):
    """That every round has brought each weight in once, of those that do not stay; the first brings those, too."""
    assert len(rounds) > 1 and rounds[0]["not staying"]
    for each in rounds[1:]:
        assert each["read"] <= 1.05 * each["not staying"]


def test_a_model_three_times_as_large_as_its_device(tmp_path):
    weights = llama(tmp_path / "model", hidden_size=128, intermediate_size=352, num_hidden_layers=12)
    limit = weights // 2
    expected, given = both(tmp_path, tmp_path / "model", limit, {"search": OPTIONS})
    assert_same(expected, given, "search")
    assert given["search"]["repairs"][0][3]
    assert given["search"]["peak"] < limit
    assert_read_once(given["search"]["rounds"])


@pytest.mark.long
def test_a_gigabyte_on_four_hundred_megabytes(tmp_path):
    weights = llama(tmp_path / "model", hidden_size=1024, intermediate_size=2816, num_hidden_layers=24)
    assert weights > 1.2e9
    runs = {"exhaustive": OPTIONS | {"repair_samples": 32}, "lazy": OPTIONS | LAZY | {"output": True}}
    expected, given = both(tmp_path, tmp_path / "model", 400_000_000, runs)
    for name in runs:
        assert_same(expected, given, name)
        assert given[name]["peak"] < 400_000_000
        assert_read_once(given[name]["rounds"])
    assert given["exhaustive"]["repairs"][0][3]
    assert LlamaConfig.from_pretrained(given["folder"] / "lazy").num_hidden_layers <= 24
