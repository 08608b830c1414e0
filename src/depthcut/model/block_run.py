"""Runs blocks on batches, and on parts of them where there is no memory for all of their sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from depthcut.model.block_call import Beside, BlockCaller, Visitor
from depthcut.model.device import free_cached_memory
from depthcut.model.shortage import give_up, say_once
from depthcut.process.faults import is_out_of_memory
from depthcut.types import ResourceError, Unit

if TYPE_CHECKING:
    from depthcut.model.stream import Batch


class BlockRunner:
    """Runs a model's blocks.

    Args:
        prepare: makes a batch of token ids and a mask.
        device: on which the model is.
    """

    def __init__(
        self,
        call: BlockCaller,
        prepare: Callable[[torch.Tensor, torch.Tensor | None], Batch],
        device: torch.device,
    ) -> None:
        self._call, self._prepare, self._device = call, prepare, device
        self._rows_at_once: int | None = None
        self._undivided = False

    def __call__(
        self,
        batch: Batch,
        layer: int,
        hidden: torch.Tensor,
        units: tuple[Unit, ...],
        visit: Visitor | None,
        beside: Beside,
    ) -> torch.Tensor:
        """The stream after a block, from a whole batch, or from parts of it after memory has run out with that many
        sequences.

        Each part is what it is when run by itself: it may differ from the whole in the last bits. Where one sequence is
        too many, what is kept to save work is given up.

        Args:
            hidden: (sequences, length, hidden) entering the first of `units`.
            units: of the block, in order of execution, up to its last.
            beside: of this pass.

        Raises:
            ResourceError: memory does not suffice for one sequence.
        """
        while True:
            step = self._rows_at_once
            divided = step is not None and len(hidden) > step
            try:
                if step is not None and divided:
                    return self._in_parts(batch, layer, hidden, units, visit, step)
                return self._whole(batch, layer, hidden, units, visit, beside)
            except (RuntimeError, MemoryError) as error:
                # What blocks hand on beside the stream is that of the whole batch.
                if not is_out_of_memory(error) or self._undivided or self._call.architecture.last_entry is not None:
                    raise
            # Only here is the failed attempt's memory free again: the exception held it.
            self._make_do(*batch.input_ids.shape, divided=divided)

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """While open, batches are run whole."""
        before, self._undivided, self._rows_at_once = self._rows_at_once, True, None
        try:
            yield
        finally:
            self._undivided, self._rows_at_once = False, before

    def _whole(
        self,
        batch: Batch,
        layer: int,
        hidden: torch.Tensor,
        units: tuple[Unit, ...],
        visit: Visitor | None,
        beside: Beside,
    ) -> torch.Tensor:
        seen: list[tuple[Unit | int, torch.Tensor, torch.Tensor]] = []
        keep = None if visit is None else lambda *around: seen.append(around)
        output = self._call.around(layer, hidden, batch.calls[layer], beside, units, keep)
        for around in seen:
            assert visit is not None
            visit(*around)
        return output

    def _make_do(self, num_sequences: int, length: int, *, divided: bool) -> None:
        free_cached_memory(self._device)
        if num_sequences > 1 and not divided:
            say_once(f"no memory for {num_sequences} sequences at a time: they are run in parts")
            self._rows_at_once = num_sequences // 2
        elif give_up(self._device):
            # With the room that this makes all may go again.
            self._rows_at_once = None
        else:
            raise ResourceError(
                f"there is no memory for one sequence of {length} tokens; free some, give shorter ones, load the model "
                "with --dtype bfloat16, or give a smaller --memory-budget"
            )

    def _in_parts(
        self, batch: Batch, layer: int, hidden: torch.Tensor, units: tuple[Unit, ...], visit: Visitor | None, step: int
    ) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        seen: dict[Unit | int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for begin in range(0, len(hidden), step):
            rows = slice(begin, begin + step)
            mask = None if batch.attention_mask is None else batch.attention_mask[rows]
            part = self._prepare(batch.input_ids[rows], mask)
            keep = None if visit is None else lambda unit, *around: seen.setdefault(unit, []).append(around)
            outputs.append(self(part, layer, hidden[rows], units, keep, Beside()))
        output = torch.cat(outputs)
        # All of it is there before any of it is seen: what memory runs out in is done anew.
        whole = {unit: [torch.cat(streams) for streams in zip(*around, strict=True)] for unit, around in seen.items()}
        for unit, (before, after) in whole.items():
            assert visit is not None
            visit(unit, before, after)
        return output
