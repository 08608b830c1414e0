"""A GGUF's metadata is found in less time, and is the same."""

import gguf
import numpy as np
import pytest

from depthcut.gguf.quick_reader import QuickReader, quick_reading
from depthcut.model.load import resolve

LISTS = {
    "strings": ["", "a", "ü", "many bytes " * 9],
    "whole": [3, -1, 2**31 - 1],
    "broken": [0.5, -2.25],
    "truths": [True, False, True],
    "nested": [[1, 2], [3, 4]],
}


@pytest.fixture
def file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name, values in LISTS.items():
        writer.add_array(name, values)
    writer.add_string("one", "word")
    writer.add_uint32("number", 7)
    writer.add_tensor("weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def require_same(file):
    theirs, ours = gguf.GGUFReader(file), QuickReader(file)
    assert theirs.fields.keys() == ours.fields.keys()
    for name, field in theirs.fields.items():
        found = ours.fields[name]
        assert (found.offset, found.data, found.types) == (field.offset, field.data, field.types), name
        pieces = ([(piece.dtype, piece.tobytes()) for piece in each.parts] for each in (field, found))
        assert next(pieces) == next(pieces), name
    tensors = [[(t.name, t.data_offset, t.data.tobytes()) for t in reader.tensors] for reader in (theirs, ours)]
    assert tensors[0] == tensors[1]


def test_lists_of_every_kind_are_those_of_the_package(file):
    require_same(file)
    assert QuickReader(file).fields["strings"].contents() == LISTS["strings"]


@pytest.mark.real
def test_so_are_those_of_a_real_file():
    source = resolve("smollm2")
    require_same(source.folder / source.gguf_file)


@pytest.mark.parametrize("name", ["strings", "whole"])
def test_a_file_that_ends_within_a_list_is_refused(file, name):
    field = QuickReader(file).fields[name]
    value = field.parts[field.data[-1]]
    whole = file.read_bytes()
    end = whole.index(value.tobytes(), field.offset)
    file.write_bytes(whole[: end - 4])  # before the last number, or within the length of the last string
    with pytest.raises(ValueError, match="the file ends within a list of"):
        QuickReader(file)


def test_transformers_takes_it_only_while_a_file_is_read():
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    with quick_reading():
        assert gguf.GGUFReader is QuickReader
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is names
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == own
