"""The text of a repair, as many sequences at a time as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from depthcut.calibration import Samples
from depthcut.model.shortage import give_up, say_once
from depthcut.model.stream import Batch, DecoderStream
from depthcut.process.faults import is_out_of_memory
from depthcut.types import ResourceError

Fit = TypeVar("Fit")


class TextBatches:
    """Batches of a text.

    Args:
        size: sequences of each.
    """

    def __init__(self, samples: Samples, size: int) -> None:
        self._samples, self._size = samples, size

    def of(self, stream: DecoderStream) -> Iterator[tuple[slice, Batch]]:
        """Each batch, ready to be run through a model, with its rows of the text."""
        ids, mask, size = self._samples.input_ids, self._samples.attention_mask, self._size
        for rows in (slice(begin, begin + size) for begin in range(0, len(ids), size)):
            yield rows, stream.prepare(ids[rows], mask[rows])

    def whole(self, stream: DecoderStream, fit: Callable[[], Fit]) -> Fit:
        """Calls what runs the batches whole, since it watches modules; once more with half of the sequences in each
        where memory runs out.

        Raises:
            ResourceError: it does not suffice for a sequence.
        """
        while True:
            try:
                with stream.undivided():
                    return fit()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            freed = give_up(stream.model.device)
            if self._size == 1 and not freed:
                raise ResourceError(
                    "there is no memory to repair with one sequence at a time; free some, or give shorter sequences"
                )
            say_once(f"no memory to repair with {self._size} sequences at a time: fewer are run together")
            self._size = max(1, self._size // 2)
