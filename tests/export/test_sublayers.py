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


FAMILIES = ["llama", "gemma3_text", "gpt2", "gpt_neox"]


@pytest.fixture(scope="module")
def all_written(tmp_path_factory):
    """By family, a model without sublayers and the folder that it is written in."""
    root, made = tmp_path_factory.mktemp("written"), {}
    for family in FAMILIES:
        source = resolve(str(tiny.save(root / family / "dense", family)))
        pruned = apply(source.load_model("cpu"), source.architecture, REMOVED)
        folder = root / family / "pruned"
        folder.mkdir()
        write_directory(pruned, NoTokenizer(), folder)
        made[family] = pruned, folder
    return made


@pytest.fixture(params=FAMILIES)
def written(request, all_written):
    return all_written[request.param]


@torch.no_grad()
@pytest.mark.usefixtures("read_afresh")
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


LOADED_PLAINLY = """
import json, sys
from transformers import AutoModelForCausalLM
told = []
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        told.append("it loads")
    except Exception as error:
        told.append(str(error))
print()
print(json.dumps(told))
"""


def test_nothing_that_ignores_the_manifest_loads_it(all_written):
    folders = [folder for _, folder in all_written.values()]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"].startswith("depthcut_")
        assert config["removed_sublayers"]
    command = [sys.executable, "-c", LOADED_PLAINLY, *map(str, folders)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    told = json.loads(child.stdout.splitlines()[-1])  # transformers asks there whether the code may run
    assert len(told) == len(folders)
    assert all("trust_remote_code" in reason or "depthcut_" in reason for reason in told), told


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
