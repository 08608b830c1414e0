"""What is written must be the same model in transformers 4, which engines and trainers are still pinned to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from depthcut.export import hf
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit

pytestmark = pytest.mark.readers

TEXT = "The keeper of the lighthouse wrote down every ship that passed, its flag and its hour. Then the storm came."
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 16}
# Longer than what phi3 was trained on, so that its long factors count.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
UNSCALED = {"rope_type": "default", "rope_theta": 123.0}
# No base and no scaling is the default of its family, so that a reader that finds neither answers otherwise.
CASES = {
    "llama": {"rope_parameters": LLAMA3},
    "qwen2": {"rope_parameters": YARN},
    "qwen3": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 200.0}},
    "gemma3_text": {"rope_parameters": BY_KIND},
    "olmo3": {"rope_parameters": {"full_attention": YARN, "sliding_attention": UNSCALED | {"rope_theta": 700.0}}},
    "mistral": {"rope_parameters": UNSCALED},
    "phi3": {"rope_parameters": LONG, "original_max_position_embeddings": 8},
    "phi": {"rope_parameters": UNSCALED | {"partial_rotary_factor": 0.5}},
    "gpt_neox": {"rope_parameters": UNSCALED | {"partial_rotary_factor": 0.5}},
}
BLOCKS = [Unit(layer, kind) for layer in (1, 3) for kind in ("attn", "ffn")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Pruned models by name, in memory and written: of every case, and of the demo's GGUF file."""
    folder = tmp_path_factory.mktemp("written")
    made = {
        family: (tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY, **changes), tiny.tokenizer())
        for family, changes in CASES.items()
    }
    source = resolve("smollm2")
    made["demo"] = source.load_model("cpu"), source.load_tokenizer()
    pruned = {name: apply(model, find_architecture(model.config), BLOCKS) for name, (model, _) in made.items()}
    for name, model in pruned.items():
        (folder / name).mkdir()
        hf.write_directory(model, made[name][1], folder / name)
    return pruned, {name: tokenizer for name, (_, tokenizer) in made.items()}, folder


@pytest.fixture(scope="module")
def answers(written):
    """What transformers 4 says of each: all in one process, since starting takes longer than answering."""
    pruned, tokenizers, folder = written
    question = {
        "folders": {name: str(folder / name) for name in pruned},
        "input_ids": {name: tokenizers[name](TEXT)["input_ids"][:40] for name in pruned},
        "text": TEXT,
    }
    question["input_ids"] = {name: [ids] for name, ids in question["input_ids"].items()}
    (folder / "question.json").write_text(json.dumps(question))
    # The older packages come first on the path; torch is the same.
    environment = os.environ | {"PYTHONPATH": os.environ["DEPTHCUT_OLD_TRANSFORMERS"]}
    script = Path(__file__).with_name("old_reader.py")
    command = [sys.executable, "-P", str(script), str(folder / "question.json"), str(folder / "answers.safetensors")]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return question, load_file(folder / "answers.safetensors")


def loss(logits, ids):
    """Nats a token."""
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:]))


@pytest.mark.parametrize("name", [*CASES, "demo"])
@torch.no_grad()
def test_transformers_4_finds_the_model_in_memory(name, written, answers):
    pruned, tokenizers, _ = written
    question, found = answers
    ids = torch.tensor(question["input_ids"][name])
    logits = pruned[name](input_ids=ids, use_cache=False).logits
    assert (found[f"{name}.logits"] - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert abs(loss(found[f"{name}.logits"], ids) - loss(logits, ids)) <= 1e-4
    assert found[f"{name}.tokens"][0].tolist() == tokenizers[name](TEXT)["input_ids"]
