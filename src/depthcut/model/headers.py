"""What the safetensors of a directory hold, from their headers alone: names, shapes and precisions.

Neither torch nor transformers is needed here, and no weight is read.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from depthcut.types import require_regular

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file.

    Attributes:
        dtype: as the format names it: `BF16`, `F32`, `U8`.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor in a directory's safetensors by name.

    A file whose header cannot be read is left out: reading the weights tells what is wrong with it.

    Raises:
        InputError: a file is a pipe or device.
    """
    found: dict[str, TensorHeader] = {}
    for path in sorted(folder.glob("*.safetensors")):
        require_regular(path)
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else {}
            found |= {
                name: TensorHeader(tuple(entry["shape"]), entry["dtype"], path)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return found
