"""What is exported must run in vLLM itself and give the answers of the model in memory."""

import pytest
import torch

import tiny
from depthcut.evaluation.engines import check_engine
from depthcut.export import EXPORTS, second_reader
from depthcut.export.nemotron_nas import VLLM_SCRIPT
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit

pytestmark = [pytest.mark.engine, pytest.mark.vllm]

TEXT = "The keeper of the lighthouse wrote down every ship that passed, its flag and its hour. Then the storm came."
BLOCKS = "8.attn 8.ffn 14.attn 14.ffn 20.attn 20.ffn 26.attn 26.ffn"
# Three blocks, and three feed-forward parts each with the attention of the next block.
PAIRS = "4.attn 4.ffn 9.ffn 10.attn 13.attn 13.ffn 17.ffn 18.attn 22.attn 22.ffn 25.ffn 26.attn"
ATTENTIONS = "3.attn 7.attn 11.attn 14.attn 17.attn 20.attn 23.attn 26.attn"
BOTH = "0.attn 7.attn 11.attn 14.attn 17.attn 20.attn 23.attn 26.attn 5.ffn 16.ffn 29.ffn"


def units(names):
    return [Unit.parse(name) for name in names.split()]


@pytest.fixture(scope="module")
def smollm2():
    source = resolve("smollm2")
    return source.load_model("cpu"), source.load_tokenizer(), source.architecture


def check(form, model, tokenizer, ids, folder):
    folder.mkdir()
    exporter = EXPORTS.find(form).make()
    exporter.check(model.config)
    exporter.write(model, tokenizer, folder)
    second_reader.verify_with("vLLM", VLLM_SCRIPT, folder, model, ids, check_engine("vllm"))


@pytest.mark.parametrize(
    ("form", "removed"),
    [("hf", BLOCKS), ("hf", PAIRS), ("nemotron-nas", ATTENTIONS), ("nemotron-nas", BOTH), ("zeroed", BOTH)],
    ids=["blocks", "pairs", "attentions", "attentions and FFNs", "attentions and FFNs zeroed"],
)
def test_smollm2_answers_as_in_memory(form, removed, smollm2, tmp_path, monkeypatch):
    monkeypatch.setitem(second_reader.TIE_NATS, torch.float32, 0.0)
    dense, tokenizer, architecture = smollm2
    pruned = apply(dense, architecture, units(removed))
    check(form, pruned, tokenizer, tokenizer(TEXT, return_tensors="pt")["input_ids"], tmp_path / "written")


@pytest.mark.parametrize("removed", ["", "0.attn 1.ffn 3.attn 5.ffn"], ids=["whole", "sublayers"])
@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_other_families_answer_as_in_memory(family, removed, tmp_path):
    # Heads of 32 are the smallest that vLLM computes; 300 is no multiple of 256.
    shape = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 300, "vocab_size": tiny.BYTE_VOCABULARY}
    window = {"sliding_window": None} if family == "mistral" else {"use_sliding_window": False, "layer_types": None}
    dense = tiny.model(family, **shape, **window)
    pruned = apply(dense, find_architecture(dense.config), units(removed))
    check("nemotron-nas", pruned, tiny.tokenizer(), tiny.samples(num_samples=1).input_ids, tmp_path / "written")
