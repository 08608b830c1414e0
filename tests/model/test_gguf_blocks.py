"""A GGUF that miscounts its blocks, or is no language model, is refused before anything is built from it."""

import struct

import pytest

import tiny
from depthcut.model.load import resolve
from depthcut.run.apply_gguf import apply_to_gguf
from depthcut.types import InputError
from export import gguf_models


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    gguf_models.form().write(gguf_models.make(), tiny.tokenizer(), folder)
    (file,) = folder.glob("*.gguf")
    return file.read_bytes()


@pytest.mark.parametrize("count", [0, 3, 9, 10**9])
def test_a_count_that_is_not_that_of_the_tensors(content, tmp_path, count):
    key = b"llama.block_count"
    at = content.index(key) + len(key) + 4
    file = tmp_path / "model.gguf"
    file.write_bytes(content[:at] + struct.pack("<I", count) + content[at + 4 :])
    words = f"llama.block_count says {count} blocks, and it holds 6; download it again"
    with pytest.raises(InputError, match=words):
        resolve(str(file))
    with pytest.raises(InputError, match=words):
        apply_to_gguf(str(file), tmp_path / "plan.json", tmp_path / "out")


def test_the_encoder_beside_a_multimodal_model(content, tmp_path):
    # The name is a letter shorter, so that tensors move within their alignment.
    file = tmp_path / "mmproj.gguf"
    at = content.index(b"general.architecture") + len(b"general.architecture") + 4
    assert content[at : at + 13] == struct.pack("<Q", 5) + b"llama"
    file.write_bytes(content[:at] + struct.pack("<Q", 4) + b"clip" + content[at + 13 :] + bytes(32))
    with pytest.raises(InputError, match="holds the encoder of images or sound of a model .mmproj., not the language"):
        resolve(str(file))
