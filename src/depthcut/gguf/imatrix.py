"""An importance matrix of llama.cpp (`llama-imatrix`), cut along with the model that it was measured on.

It holds for every tensor how much each column matters, under the tensor's name. Two formats: a GGUF with the tensors
`NAME.in_sum2` and `NAME.counts`, and the older `.dat`. Source: llama.cpp, `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from depthcut.gguf.container import MAGIC, Tensor, read_file, write_file
from depthcut.types import InputError

SUFFIXES = (".in_sum2", ".counts")


def cut_imatrix(source: Path, target: Path, origins: Mapping[str, str]) -> int:
    """Writes the entries of kept tensors under their new names.

    Args:
        origins: name of a tensor in the dense model, by its name in the pruned one.

    Returns:
        How many tensors of the pruned model have an entry.

    Raises:
        InputError: the file is no importance matrix, or of another model.
    """
    with source.open("rb") as file:
        magic = file.read(4)
    num_entries = (_cut_gguf if magic == MAGIC else _cut_dat)(source, target, origins)
    if not num_entries:
        raise InputError(f"{source} is of another model: it has no entry for any kept tensor")
    return num_entries


def _cut_gguf(source: Path, target: Path, origins: Mapping[str, str]) -> int:
    file = read_file(source)
    if file.get("general.type") != "imatrix":
        raise InputError(f"{source} is a GGUF, but no importance matrix; give what llama-imatrix wrote")
    kept = [
        (f"{new}{suffix}", file.tensors[f"{old}{suffix}"])
        for new, old in origins.items()
        for suffix in SUFFIXES
        if f"{old}{suffix}" in file.tensors
    ]
    tensors = [Tensor(name, t.dims, t.type, lambda t=t: file.pieces(t)) for name, t in kept]  # type: ignore[misc]
    write_file(target, file.metadata, tensors)
    return len(kept) // len(SUFFIXES)


def _cut_dat(source: Path, target: Path, origins: Mapping[str, str]) -> int:
    content = source.read_bytes()
    entries: dict[str, bytes] = {}
    try:
        (count,) = struct.unpack_from("<i", content)
        offset = 4
        for _ in range(count):
            (length,) = struct.unpack_from("<i", content, offset)
            name = content[offset + 4 : offset + 4 + length].decode("utf-8")
            begin = offset + 4 + length
            _, num_values = struct.unpack_from("<ii", content, begin)
            offset = begin + 8 + 4 * num_values
            if not 0 < length < offset <= len(content):
                raise ValueError("it ends too early")
            entries[name] = content[begin:offset]
    except (struct.error, ValueError) as error:
        raise InputError(f"{source} is no importance matrix of llama.cpp ({error})") from error
    kept = {new: entries[old] for new, old in origins.items() if old in entries}
    written = b"".join(struct.pack("<i", len(name.encode())) + name.encode() + entry for name, entry in kept.items())
    target.write_bytes(struct.pack("<i", len(kept)) + written + content[offset:])
    return len(kept)
