"""Copies weights to an accelerator while it computes: through pinned memory, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

PART_BYTES = 2**24
"""Bytes of a weight that are read at a time."""

WITHOUT_STREAMS = ("cpu", "mps")
"""Devices that use the memory of the host, so that nothing is copied beside what they compute."""


class Transfer:
    """Brings tensors to one device in the order in which they are asked for, by a thread.

    Two pieces of pinned memory take turns: while one is copied to the device, the other is filled from the file.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.Stream(device=device)
        self._thread = ThreadPoolExecutor(1, "weights")
        self._turns = self._take_turns()

    @classmethod
    def to(cls, device: torch.device) -> Transfer | None:
        """A transfer to a device; None where there is nothing to copy to."""
        return None if device.type in WITHOUT_STREAMS else cls(device)

    def begin(self, onto: torch.Tensor, parts: Iterable[torch.Tensor]) -> Future[torch.Event]:
        """Begins to copy.

        Args:
            onto: on the device, and of the stream that computes now.
            parts: the values in pieces, as `split` gives them.

        Returns:
            What ends once all is on its way, with the event that has happened once all is there.
        """
        # Whatever was in this memory before may still be computed with.
        is_free = torch.accelerator.current_stream(self._device).record_event()
        return self._thread.submit(self._copy, is_free, onto, parts)

    def _copy(self, is_free: torch.Event, onto: torch.Tensor, parts: Iterable[torch.Tensor]) -> torch.Event:
        with self._stream:
            self._stream.wait_event(is_free)
            for there, part in zip(split(onto), parts, strict=True):
                room, copied = next(self._turns)
                copied.synchronize()
                pinned = room[: part.nbytes].view(part.dtype)
                pinned.copy_(part)
                there.copy_(pinned, non_blocking=True)
                copied.record(self._stream)
            onto.record_stream(self._stream)
            return self._stream.record_event()

    def _take_turns(self) -> Iterator[tuple[torch.Tensor, torch.Event]]:
        """Pinned memory, and the event that it has been copied from."""
        pieces = [(_pinned(PART_BYTES), torch.Event(self._device)) for _ in range(2)]
        while True:
            yield from pieces


def split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of a tensor, flat, of at most `PART_BYTES`."""
    return torch.split(tensor.view(-1), PART_BYTES // tensor.itemsize)


def _pinned(num_bytes: int) -> torch.Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        # Not every backend has such memory.
        return torch.empty(num_bytes, dtype=torch.uint8)
