"""Room for the streams that a repair keeps of all its text: in memory, or in files where memory is too small."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from depthcut.repairs import Damage


class Rooms:
    """Hands out tensors for streams, and takes them back for others.

    Args:
        most: streams that exist together; whether memory suffices is decided for all of them.
    """

    def __init__(self, damage: Damage, most: int) -> None:
        dense = damage.dense.model
        self._shape = torch.Size((*damage.text.input_ids.shape, dense.config.get_text_config().hidden_size))
        self._dtype: torch.dtype = dense.dtype
        self._in_memory = most * self._shape.numel() * self._dtype.itemsize <= damage.memory_budget
        self._scratch = TemporaryDirectory(ignore_cleanup_errors=True)
        self._free: list[torch.Tensor] = []
        self._count = 0

    def take(self) -> torch.Tensor:
        """(sequences, length, hidden) in the model's dtype; holds anything."""
        if self._free:
            return self._free.pop()
        if self._in_memory:
            return torch.empty(self._shape, dtype=self._dtype)
        self._count += 1
        file, size = Path(self._scratch.name) / str(self._count), self._shape.numel()
        return torch.from_file(str(file), shared=True, size=size, dtype=self._dtype).view(self._shape)

    def give_back(self, room: torch.Tensor) -> None:
        self._free.append(room)

    def close(self) -> None:
        self._free.clear()
        self._scratch.cleanup()
