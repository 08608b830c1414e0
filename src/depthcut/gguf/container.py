"""The GGUF file itself: metadata and tensors read without loading either, and written in one pass.

A metadata value stays the bytes that it is in its file until someone asks what they mean, and tensors pass through in
pieces: the `gguf` package's own reader makes Python objects of every token, which for a vocabulary of 262,144 takes
9 seconds and 800 MB. The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2
and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from depthcut.types import InputError

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
PIECE_BYTES = 2**20

FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
"""How `struct` writes the values of fixed size."""

STRING, ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY
DAMAGED = (struct.error, ValueError, UnicodeDecodeError, OverflowError)


@dataclass(frozen=True)
class Value:
    """One metadata value.

    Attributes:
        raw: as it stands in a file; of an array without its length.
        element: type of an array's elements, None where the value is no array.
        length: of an array.
    """

    type: GGUFValueType
    raw: bytes
    element: GGUFValueType | None = None
    length: int = 0

    @classmethod
    def of(cls, kind: GGUFValueType, value: Any) -> Self:
        """A single value, for example `Value.of(GGUFValueType.UINT32, 30)`."""
        return cls(kind, _encode(kind, value))

    @classmethod
    def array(cls, element: GGUFValueType, values: Sequence[Any]) -> Self:
        """An array of values of one type."""
        return cls(ARRAY, b"".join(_encode(element, value) for value in values), element, len(values))

    def read(self) -> Any:
        """The value as Python has it; a list where it is an array."""
        if self.element is None and self.type == STRING:
            return self.raw[8:].decode("utf-8")
        if self.element is None:
            (value,) = struct.unpack(FORMATS[self.type], self.raw)
            return value
        if self.element == STRING:
            offset, texts = 0, []
            for _ in range(self.length):
                (size,) = struct.unpack_from("<Q", self.raw, offset)
                texts.append(self.raw[offset + 8 : offset + 8 + size].decode("utf-8"))
                offset += 8 + size
            return texts
        return [value for (value,) in struct.iter_unpack(FORMATS[self.element], self.raw)]

    def encoded(self) -> bytes:
        """Type and value, as a file has them after the key."""
        if self.element is None:
            return struct.pack("<I", self.type) + self.raw
        return struct.pack("<IIQ", self.type, self.element, self.length) + self.raw


def _encode(kind: GGUFValueType, value: Any) -> bytes:
    if kind == STRING:
        text: bytes = value.encode("utf-8")
        return struct.pack("<Q", len(text)) + text
    return struct.pack(FORMATS[kind], value)


Pieces = Callable[[], Iterable[bytes | memoryview]]
"""Makes a tensor's bytes, in order, a piece at a time."""


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written.

    Attributes:
        dims: the fastest first, as GGUF has them: (columns, rows) of a matrix.
        pieces: called when the tensor's turn comes, so that one tensor at most is in memory.
    """

    name: str
    dims: tuple[int, ...]
    type: GGMLQuantizationType
    pieces: Pieces

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.dims, self.type)


def tensor_bytes(dims: Sequence[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor of that shape and type."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(math.prod(dims) // block * size)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dims: the fastest first.
        start: offset in the file.
        file: the part that it lies in; None where there is one file.
    """

    name: str
    dims: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    file: Path | None = None

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.dims, self.type)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: `dims[0]` numbers."""
        return tensor_bytes(self.dims[:1], self.type)


@dataclass(frozen=True)
class GgufFile:
    """What a file holds; its tensors stay in it.

    Attributes:
        tensors: by name, in the order of the file.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python has it."""
        return self.metadata[key].read() if key in self.metadata else default

    def pieces(self, tensor: StoredTensor) -> Iterator[bytes]:
        """The tensor's bytes in order, at most `PIECE_BYTES` at a time."""
        with (tensor.file or self.path).open("rb") as file:
            file.seek(tensor.start)
            left = tensor.num_bytes
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise InputError(f"{self.path} ends within the tensor {tensor.name}; download it again")
                left -= len(piece)
                yield piece


FIRST_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
"""Ends the name of the first part of a GGUF that is split."""


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF, given its first.

    Raises:
        InputError: one is missing.
    """
    found = FIRST_PART.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[1])
    parts = [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise InputError(f"{path} is the first of {count} parts, and {part} is missing; download it")
    return parts


def read_model(path: Path) -> GgufFile:
    """Reads what a GGUF holds, not the tensors; of one in parts (`-00001-of-00003`) all that lie beside the first.

    Raises:
        InputError: a part is missing, is no GGUF that can be read, or is damaged.
    """
    first = read_file(path)
    tensors: dict[str, StoredTensor] = {}
    parts = gguf_parts(path)
    for part in parts if len(parts) > 1 else ():
        tensors |= {name: replace(tensor, file=part) for name, tensor in read_file(part).tensors.items()}
    if len(parts) > 1 and len(tensors) != first.get("split.tensors.count", len(tensors)):
        raise InputError(f"the parts of {path} hold {len(tensors)} tensors, not all of them; download them again")
    metadata = {key: value for key, value in first.metadata.items() if not key.startswith("split.")}
    return GgufFile(path, metadata, tensors or first.tensors)


def read_file(path: Path) -> GgufFile:
    """Reads what one file holds, not the tensors.

    Raises:
        InputError: it is no GGUF that can be read, or it is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            cursor = _Cursor(content)
            magic, version = cursor.take(4), cursor.number("<I")
            if magic != MAGIC:
                raise InputError(f"{path} is no GGUF file (it begins with {magic!r}); download it again")
            if version not in READABLE_VERSIONS:
                raise InputError(
                    f"{path} is a GGUF of version {version} or big-endian; only little-endian files of version 2 and 3 "
                    "are read, so convert the model again"
                )
            num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
            metadata = {}
            for _ in range(num_values):
                key = cursor.text()
                metadata[key] = cursor.value()
            listed = [cursor.tensor() for _ in range(num_tensors)]
            alignment = metadata["general.alignment"].read() if "general.alignment" in metadata else DEFAULT_ALIGNMENT
            start = _aligned(cursor.offset, alignment)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except DAMAGED as error:
        raise InputError(f"{path} is damaged ({error}); download it again") from error
    tensors = {name: StoredTensor(name, dims, kind, start + offset) for name, dims, kind, offset in listed}
    for tensor in tensors.values():
        if tensor.start + tensor.num_bytes > size:
            raise InputError(f"{path} ends before the tensor {tensor.name} does; download it again")
    return GgufFile(path, metadata, tensors)


class _Cursor:
    """Reads one item after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.offset = 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.offset:
            raise ValueError("it ends too early")
        taken = self.content[self.offset : self.offset + size]
        self.offset += size
        return taken

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8")

    def value(self) -> Value:
        kind = GGUFValueType(self.number("<I"))
        if kind != ARRAY:
            begin = self.offset
            self._pass(kind, 1)
            return Value(kind, self.content[begin : self.offset])
        element, length = GGUFValueType(self.number("<I")), self.number("<Q")
        begin = self.offset
        self._pass(element, length)
        return Value(ARRAY, self.content[begin : self.offset], element, length)

    def _pass(self, kind: GGUFValueType, count: int) -> None:
        """Moves behind values of a type."""
        if kind == ARRAY:
            raise ValueError("it holds an array of arrays")
        size = 0 if kind == STRING else struct.calcsize(FORMATS[kind]) * count
        for _ in range(count if kind == STRING else 0):
            (length,) = struct.unpack_from("<Q", self.content, self.offset)
            self.offset += 8 + length
        self.offset += size
        if self.offset > len(self.content):
            raise ValueError("it ends too early")

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, num_dims = self.text(), self.number("<I")
        dims = tuple(self.number("<Q") for _ in range(num_dims))
        return name, dims, GGMLQuantizationType(self.number("<I")), self.number("<Q")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def write_file(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """Writes a GGUF, the tensors one after the other in the given order."""
    alignment = metadata["general.alignment"].read() if "general.alignment" in metadata else DEFAULT_ALIGNMENT
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_encode(STRING, key) + value.encoded())
        offset = 0
        for tensor in tensors:
            dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
            file.write(_encode(STRING, tensor.name) + dims + struct.pack("<IQ", tensor.type, offset))
            offset += _aligned(tensor.num_bytes, alignment)
        file.write(bytes(_aligned(file.tell(), alignment) - file.tell()))
        for tensor in tensors:
            written = sum(file.write(piece) for piece in tensor.pieces())
            assert written == tensor.num_bytes, f"{tensor.name} has {written} bytes, not {tensor.num_bytes}"
            file.write(bytes(_aligned(written, alignment) - written))
