"""Models written as their source's files store them: kept tensors byte for byte, under the names of their new places.

Nothing is dequantised and nothing is read as numbers, so any dtype goes through, and memory holds one piece at a time.
The layout of the files is that of https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from transformers import PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.model.checkpoint import WEIGHTS, WEIGHTS_INDEX
from depthcut.model.quantised_names import renumbered_entries
from depthcut.model.stored import StoredModel

SHARD_BYTES = 5 * 10**9
PIECE_BYTES = 2**24
ALIGNMENT = 8


@dataclass(frozen=True)
class Lying:
    """A tensor as it lies in a file.

    Attributes:
        begin: offset in the file.
    """

    file: Path
    dtype: str
    shape: list[int]
    begin: int
    num_bytes: int

    def pieces(self) -> Iterator[bytes]:
        with self.file.open("rb") as opened:
            opened.seek(self.begin)
            left = self.num_bytes
            while left:
                piece = opened.read(min(left, PIECE_BYTES))
                if not piece:
                    raise OSError(f"{self.file} ends early")
                left -= len(piece)
                yield piece


def lying_in(folder: Path) -> dict[str, Lying]:
    """Every tensor of a folder's safetensors by name."""
    found: dict[str, Lying] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = Lying(file, entry["dtype"], entry["shape"], 8 + length + begin, end - begin)
    return found


def write_weights(model: StoredModel, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the weights into an existing folder, in files of at most so many bytes (or of one tensor)."""
    lying = lying_in(model.folder)
    shards: list[dict[str, Lying]] = [{}]
    taken = 0
    for new, old in model.names.items():
        if shards[-1] and taken + lying[old].num_bytes > shard_bytes:
            shards.append({})
            taken = 0
        shards[-1][new] = lying[old]
        taken += lying[old].num_bytes
    if len(shards) == 1:
        _write_file(folder / WEIGHTS, shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.num_bytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_file(path: Path, tensors: dict[str, Lying]) -> None:
    # Large elements first, so that each tensor begins at a multiple of its own.
    order = sorted(tensors, key=lambda name: (-_element_bytes(tensors[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for name in order:
            _copy(tensors[name], file)


def _element_bytes(tensor: Lying) -> float:
    numbers = 1
    for size in tensor.shape:
        numbers *= size
    return tensor.num_bytes / numbers if numbers else 0


def _copy(tensor: Lying, file: BinaryIO) -> None:
    for piece in tensor.pieces():
        file.write(piece)


def add_quantisation(stored: StoredModel, architecture: Architecture, folder: Path) -> None:
    """Says in a written `config.json` how the weights are stored, layers by the names that they have now."""
    file = folder / "config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    for given, written in ((stored.source_entries, entries), *_nested(stored.source_entries, entries)):
        if "quantization_config" in given:
            written["quantization_config"] = renumbered_entries(
                given["quantization_config"], stored.blocks, architecture
            )
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _nested(given: dict[str, Any], written: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (given[name], written[name])
        for name in given
        if name.endswith("_config") and isinstance(written.get(name), dict)
    ]


def write_config_file(model: PreTrainedModel, folder: Path) -> None:
    """The configuration that `save_pretrained` would write."""
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
