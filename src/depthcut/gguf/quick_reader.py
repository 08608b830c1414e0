"""The gguf package's reader, in a tenth of its time.

transformers reads a file anew for its configuration, its tokenizer and its weights, and each time the package makes ten
views of a mapped file for every token of the vocabulary: 2.8 s of a processor for SmolLM2's 49 152 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType

HEAD_BYTES = 12
"""Of an array: the type of its values, 4 bytes, and their number, 8."""


class QuickReader(GGUFReader):  # type: ignore[misc]
    """Finds the same fields and tensors; only lists of numbers and of strings are read otherwise."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        """Size in bytes, pieces of the file, which of them are values, and their types: of one field."""
        kind = None
        if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
            head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            count, kind = int(head[1][0]), GGUFValueType(head[0][0])
        if kind is None or count == 0 or kind == GGUFValueType.ARRAY:
            found: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return found
        first, types = orig_offs + HEAD_BYTES, [GGUFValueType.ARRAY, kind]
        if kind == GGUFValueType.STRING:
            pieces, size = self._strings(first, count)
            return HEAD_BYTES + size, head + pieces, list(range(3, 3 + 2 * count, 2)), types
        values = np.asarray(self._get(first, self.gguf_scalar_to_np[kind], count))
        if len(values) < count:
            raise ValueError("the file ends within a list of numbers")
        pieces = [values[index : index + 1] for index in range(count)]
        return HEAD_BYTES + values.nbytes, head + pieces, list(range(2, 2 + count)), types

    def _strings(self, first: int, count: int) -> tuple[list[Any], int]:
        """Length and bytes of each string of a list, one after the other, and what all of it takes in the file."""
        data, offset, pieces = np.asarray(self.data), first, []
        for _ in range(count):
            begin = offset + 8
            if begin > len(data):
                raise ValueError("the file ends within a list of strings")
            length = data[offset:begin].view(np.uint64)
            offset = begin + int(length[0])
            pieces += [length, data[begin:offset]]
        return pieces, offset - first


@contextmanager
def quick_reading() -> Iterator[None]:
    """While open, transformers takes this reader, and makes the table of names once instead of once a module."""
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = QuickReader, cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = own
