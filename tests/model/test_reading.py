"""Damaged files become one sentence; a fault of ours, or a machine that has run out of something, does not."""

import errno
import json

import pytest
import torch

import shapes
import tiny
from depthcut.model import load
from depthcut.model.load import resolve
from depthcut.model.reading import reading
from depthcut.types import InputError
from model import multimodal


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve(str(tiny.save(tmp_path_factory.mktemp("models") / "llama")))


def raising(error, module):
    """A function of a module that raises an error, whatever it is given."""
    names = {"__name__": module, "error": error}
    exec("def fail(*_, **__): raise error", names)
    return names["fail"]


@pytest.mark.parametrize(
    "error", [Exception("bare"), KeyError("bare"), RecursionError("bare"), ZeroDivisionError("bare")]
)
def test_whatever_readers_raise_is_one_sentence(error):
    words = r"^cannot read the tokenizer of m: (KeyError: ')?bare'?$"
    with pytest.raises(InputError, match=words), reading("m", "tokenizer"):
        raising(error, "some_library")()


def test_a_fault_of_ours_stays_one(source, monkeypatch):
    monkeypatch.setattr(load, "shapes_of", raising(AttributeError("ours"), "depthcut.model.units"))
    with pytest.raises(AttributeError, match="ours"):
        resolve(str(source.folder))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no room"), MemoryError(), OSError(errno.ENOSPC, "No space left on device")],
    ids=lambda error: type(error).__name__,
)
def test_a_machine_that_has_run_out_is_no_damaged_file(source, monkeypatch, error):
    reader = type("Reader", (), {"from_pretrained": raising(error, "some_library")})
    monkeypatch.setattr(load, "auto_class", lambda _: reader())
    with pytest.raises(type(error)):
        source.load_model("cpu")


def test_an_entry_inside_of_a_part_is_named(tmp_path):
    folder = multimodal.save("gemma3", tmp_path / "source")
    entries = json.loads((folder / "config.json").read_text())
    entries["text_config"]["hidden_activation"] = "nonsense"
    (folder / "config.json").write_text(json.dumps(entries))
    words = r"config\.json: text_config\.hidden_activation is 'nonsense', which cannot be read \(KeyError: 'nonsense'\)"
    with pytest.raises(InputError, match=words):
        resolve(str(folder))


@pytest.mark.parametrize("blocks", [2, 9])
def test_blocks_inside_of_a_part_are_counted(tmp_path, blocks):
    folder = multimodal.save("gemma3", tmp_path / "source")
    entries = json.loads((folder / "config.json").read_text())
    given = entries["text_config"]["num_hidden_layers"]
    entries["text_config"] |= {"num_hidden_layers": blocks, "layer_types": ["full_attention"] * blocks}
    (folder / "config.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=f"it says {blocks} blocks, and the files hold {given}; download both again"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        # One kind more than blocks: that of the layer that predicts further tokens.
        ("qwen3_next", "layer_types", [*shapes.SPECIAL["qwen3_next"]["layer_types"], "full_attention"]),
        ("nemotron_h", "hybrid_override_pattern", "M|*|-|M|E|*"),
        ("nemotron_h", "hybrid_override_pattern", "M/*-ME*"),
    ],
)
def test_kinds_of_blocks_that_the_family_does_not_read_are_named(tmp_path, family, name, value):
    folder = tiny.save(tmp_path / family, family)
    entries = json.loads((folder / "config.json").read_text())
    entries = {key: entry for key, entry in entries.items() if key not in ("layers_block_type", "layer_types")}
    (folder / "config.json").write_text(json.dumps(entries | {"num_nextn_predict_layers": 1, name: value}))
    with pytest.raises(InputError, match=rf"config\.json: {name} is .*, which cannot be read"):
        resolve(str(folder))
