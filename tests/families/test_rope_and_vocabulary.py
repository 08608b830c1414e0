"""What hangs on more than single blocks survives a cut: scaled rotations of every kind, tied and resized vocabularies.

Each model is saved, cut, written and read again by plain transformers in one fresh process, which compares bit for bit.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tiny
from depthcut.export import hf
from depthcut.model.bypass import bypass
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit

PAIRS = [Unit.parse(name) for name in ("1.attn", "1.ffn", "3.ffn", "4.attn")]
ORIGINAL = 16
"""Positions before scaling."""
POSITIONS = 32
LENGTH = 40
"""Tokens of the text: more than either, so that what depends on the length is in force."""
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 16.0, "beta_slow": 1.0},
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0, 1.1, 1.3, 1.5],
        "long_factor": [1.0, 1.5, 2.0, 3.0],
    },
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
FAMILY = {"longrope": "phi3"}


pytestmark = pytest.mark.usefixtures("read_afresh")


@pytest.fixture
def ids():
    return tiny.samples(num_samples=1, length=LENGTH).input_ids


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def cut(folder, out, ids):
    """The model that a folder holds and, written and verified, the same without two blocks' worth."""
    source = resolve(str(folder))
    dense = source.load_model("cpu")
    with bypass(dense, source.architecture, PAIRS):
        bypassed = logits(dense, ids)
    pruned = apply(dense, source.architecture, PAIRS)
    assert torch.equal(logits(pruned, ids), bypassed)
    out.mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), out)
    hf.verify_directory(out, pruned, ids)
    return dense, pruned


def test_every_kind_of_rotation_that_transformers_scales_is_here():
    assert ROPES.keys() == ROPE_INIT_FUNCTIONS.keys()


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rotations(kind, spelling, tmp_path, ids):
    """As the hub's files spell it, and as transformers 5 does."""
    family = FAMILY.get(kind, "llama")
    folder = tiny.save(tmp_path / "dense", family, max_position_embeddings=POSITIONS)
    plain = logits(resolve(str(folder)).load_model("cpu"), ids)
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    for name in ("rope_parameters", "rope_scaling", "rope_theta"):
        entries.pop(name, None)
    scaling = ROPES[kind] | {"rope_type": kind}
    given = {"rope_scaling": scaling, "rope_theta": 5e3}
    if spelling == "rope_parameters":
        given = {"rope_parameters": scaling | {"rope_theta": 5e3}}
    if "original_max_position_embeddings" in scaling:
        given["original_max_position_embeddings"] = ORIGINAL
    file.write_text(json.dumps(entries | given))

    dense, pruned = cut(folder, tmp_path / "out", ids)
    assert not torch.allclose(logits(dense, ids), plain, atol=1e-3), "the scaling does nothing"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert given.items() <= written.items()
    read = AutoConfig.from_pretrained(tmp_path / "out")
    assert read.rope_parameters == dense.config.rope_parameters == pruned.config.rope_parameters
    assert read.max_position_embeddings == POSITIONS


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "head of its own"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_resized_vocabularies_and_tied_heads(family, tied, tmp_path, ids):
    """A vocabulary that was made larger than the tokenizer's, to a multiple of 64."""
    folder = tiny.save(tmp_path / "dense", family, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(tiny.BYTE_VOCABULARY + 5, pad_to_multiple_of=64)
    model.save_pretrained(folder)
    size = 320
    dense, pruned = cut(folder, tmp_path / "out", ids)
    for each in (dense, pruned):
        head, embedding = each.get_output_embeddings().weight, each.get_input_embeddings().weight
        assert len(head) == len(embedding) == each.config.vocab_size == size
        assert (head is embedding) == tied
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in written) == (not tied)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is tied
    rows = torch.tensor([[1, size - 1, size - 2]])
    again = resolve(str(tmp_path / "out")).load_model("cpu")
    assert torch.equal(logits(again, rows), logits(pruned, rows))
