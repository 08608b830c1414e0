"""A model without some sublayers must reload, through us and through its own code, and never as an unpruned one."""

import json
import subprocess
import sys

import pytest
import torch

import tiny
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

REMOVED = [Unit.parse(name) for name in ("0.attn", "2.ffn", "3.attn", "3.ffn", "5.ffn")]


class NoTokenizer:
    def save_pretrained(self, folder):
        pass


@pytest.fixture(params=["llama", "gemma3_text", "gpt2", "gpt_neox"])
def written(request, tmp_path):
    tiny.save(tmp_path / "dense", request.param)
    source = resolve(str(tmp_path / "dense"))
    pruned = apply(source.load_model("cpu"), source.architecture, REMOVED)
    folder = tmp_path / "pruned"
    folder.mkdir()
    write_directory(pruned, NoTokenizer(), folder)
    return pruned, folder


@torch.no_grad()
def test_it_reloads_through_its_own_code_and_through_depthcut(written):
    pruned, folder = written
    ids = tiny.samples().input_ids
    verify_directory(folder, pruned, ids[:1])
    loaded = resolve(str(folder)).load_model("cpu")
    assert torch.equal(loaded(input_ids=ids).logits, pruned(input_ids=ids).logits)
    removed_names = {name for name, _ in loaded.named_parameters()}
    assert removed_names == {name for name, _ in pruned.named_parameters()}


def test_only_kept_attentions_fill_the_cache(written):
    pruned, _ = written
    cache = pruned(input_ids=tiny.samples(1, 8).input_ids, use_cache=True).past_key_values
    filled = [layer.keys is not None for layer in cache.layers]
    assert sum(filled) == tiny.NUM_BLOCKS - 2
    assert cache.get_seq_length() == 8


def test_nothing_that_ignores_the_manifest_loads_it(written):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"].startswith("depthcut_")
    assert config["removed_sublayers"]
    script = f"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode != 0
    assert "trust_remote_code" in child.stderr or "depthcut_" in child.stderr


def test_it_is_not_pruned_again(written):
    pruned, _ = written
    with pytest.raises(InputError, match="already lack sublayers"):
        apply(pruned, find_architecture(pruned.config), [Unit(1, "attn")])


def test_the_generated_code_is_plain_python_without_depthcut(written):
    _, folder = written
    text = (folder / "modeling_depthcut.py").read_text()
    compile(text, "modeling_depthcut.py", "exec")
    assert "import depthcut" not in text
    assert "from depthcut" not in text
