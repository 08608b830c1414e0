"""Runs a decoder from any unit on. The engine behind scoring and search.

A decoder is a residual stream to which units add. Removing a unit changes nothing before it, so whoever keeps the
stream entering each unit needs to run only what comes after. The engine calls the model's own blocks with the
arguments that the model itself gives them (masks, rotary embeddings, per-layer types), recorded once a batch: no
family needs code here, and `proof.py` proves for the loaded model that resumed = full forward, bit for bit.

Positions: stream p enters unit p of `architecture.units(...)`; the last position is the stream before the final norm.
"""

from __future__ import annotations

import ctypes
import inspect
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthcut.model.block_call import Beside, BlockCaller, Visitor, blocks_replaced
from depthcut.model.block_run import BlockRunner
from depthcut.model.branches import Architecture
from depthcut.model.bypass import bypass
from depthcut.model.heads import head_of_model, output_width, outputs_of, pooling_of
from depthcut.model.paging import pager_of
from depthcut.model.placement import is_spread
from depthcut.model.shortage import LogitPieces
from depthcut.types import Unit

LOGIT_BYTES = 128 * 2**20
"""Most bytes that one piece of float32 logits may take."""


@dataclass(frozen=True)
class Batch:
    """Sequences ready to be run from any unit on.

    Attributes:
        input_ids: (sequences, length).
        attention_mask: same shape, 1 where there is a token; None when there are no pads.
        embedded: (sequences, length, hidden), the stream entering block 0.
        calls: for every block, by name, what the model gives it beside the stream.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    embedded: torch.Tensor
    calls: tuple[dict[str, Any], ...]

    @property
    def token_mask(self) -> torch.Tensor:
        """(sequences, length) bool: where there is a token."""
        if self.attention_mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return self.attention_mask.bool()


@dataclass(frozen=True)
class Pass:
    """One pass through units.

    Attributes:
        removed: units that are left out.
        start: position in `units` to begin at, one that `entry` gives.
        stop: position to stop at, by default the end; with parallel branches it must be the first of a block.
        stream: (sequences, length, hidden) entering `start`, by default the embedding. A function is called when the
            pass begins, and may return what an earlier pass of the list has reached by then.
        visit: sees the stream around every unit, the removed ones too (for them before = after).
    """

    batch: Batch
    removed: Collection[Unit] = ()
    start: int = 0
    stop: int | None = None
    stream: torch.Tensor | Callable[[], torch.Tensor] | None = None
    visit: Visitor | None = None


class DecoderStream:
    """The engine for one model.

    Args:
        model: in eval mode; it is not changed.
        architecture: the row that describes it.

    Attributes:
        unit_evaluations: single attentions and FFNs run so far, each on one sequence.
        pager: what brings the weights into memory; None where they are there.
        head: what the model ends in.
        pooling: of an embedding model, how its output becomes one vector.
        output_width: numbers that the output has at a position: the vocabulary, the classes, the width of an embedding.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self.model, self.architecture = model, architecture
        self.blocks = architecture.block_list(model)
        self.units = architecture.units(len(self.blocks))
        self.unit_evaluations = 0
        self.head, self.pooling = head_of_model(model), pooling_of(model)
        self.output_width = output_width(model, self.head)
        self.pager = pager_of(model)
        _tell_allocator(self.pager is None or self.pager.device.type != "cpu")
        self._call = BlockCaller(architecture, self.blocks)
        self._runner = BlockRunner(self._call, self.prepare, model.device)
        self._can_select_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def prepare(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Batch:
        """Embeds a batch and records how the model calls its blocks; no block runs.

        Args:
            input_ids: (sequences, length) int64.
            attention_mask: (sequences, length), 1 where there is a token and 0 at pads; no pads where left out.
        """
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        input_ids = input_ids.to(self.model.device)
        attention_mask = None if attention_mask is None else attention_mask.to(self.model.device)
        calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

        def record(stream: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
            calls.append((stream, given))
            return stream

        with blocks_replaced(self.architecture, self.blocks, record):
            self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return Batch(input_ids, attention_mask, self._call.embed(calls[0][0]), tuple(given for _, given in calls))

    def entry(self, position: int) -> int:
        """The last position, up to the given one, at which a pass can start.

        Branches that read the same stream start together; blocks that read more of earlier ones than the stream must
        run in the same pass as these.
        """
        return position if position == len(self.units) else self.architecture.entry_position(position)

    def run(
        self,
        batch: Batch,
        removed: Collection[Unit] = (),
        start: int = 0,
        stop: int | None = None,
        stream: torch.Tensor | None = None,
        visit: Visitor | None = None,
    ) -> torch.Tensor:
        """Runs the units from position `start` on, without the removed ones.

        Args:
            batch: from `prepare`.
            removed: units that are to add nothing.
            start: position to begin at, one that `entry` gives.
            stop: position to stop at, the end where left out.
            stream: (sequences, length, hidden) entering `start`; the embedding where left out.
            visit: sees the stream around every unit, the removed ones too (for them before = after).

        Returns:
            The stream entering `stop` (by default the one before the final norm), same shape as `stream`.
        """
        return self.run_together([Pass(batch, removed, start, stop, stream, visit)])[0]

    def run_together(self, runs: Sequence[Pass]) -> list[torch.Tensor]:
        """Runs several passes together, block by block, so that paged weights are read once for all of them.

        Returns:
            By pass, the stream entering its `stop`, as `run` returns it.
        """
        per_block = len(self.architecture.branches)
        stops = [len(self.units) if run.stop is None else run.stop for run in runs]
        if any(
            run.start != self.entry(run.start) or (self.architecture.parallel and stop % per_block)
            for run, stop in zip(runs, stops, strict=True)
        ):
            raise ValueError("a pass can only be entered and left where all that its blocks read is there")
        streams: list[torch.Tensor | None] = [None] * len(runs)
        beside = [Beside() for _ in runs]
        for layer in range(min((run.start for run in runs), default=0) // per_block, len(self.blocks)):
            if self.pager is not None:
                self.pager.expect(*(self._parts(runs, stops, ahead) for ahead in (layer, layer + 1)))
            for index, (run, stop) in enumerate(zip(runs, stops, strict=True)):
                if run.start < (layer + 1) * per_block and layer * per_block < stop:
                    streams[index] = self._run_layer(run, stop, layer, _entering(run, streams[index]), beside[index])
        return [_entering(run, stream) for run, stream in zip(runs, streams, strict=True)]

    def _parts(self, runs: Sequence[Pass], stops: Sequence[int], layer: int) -> list[nn.Module]:
        """The parts of a block that any of some passes will run."""
        per_block = len(self.architecture.branches)
        places = range(layer * per_block, min((layer + 1) * per_block, len(self.units)))
        kept = {
            self.units[place].kind
            for place in places
            for run, stop in zip(runs, stops, strict=True)
            if run.start <= place < stop and self.units[place] not in run.removed
        }
        if not kept:
            return []
        block = self.blocks[layer]
        branches = self.architecture.branches.items()
        left_out = {name for kind, branch in branches if kind not in kept for name in branch.of(block).modules}
        return [part for name, part in block.named_children() if name not in left_out]

    def _run_layer(self, run: Pass, stop: int, layer: int, hidden: torch.Tensor, beside: Beside) -> torch.Tensor:
        """Runs the part of a pass that lies in one block."""
        per_block = len(self.architecture.branches)
        begin = layer * per_block
        units = self.units[begin : begin + per_block]
        passed = units[: max(0, run.start - begin)]
        ahead = units[stop - begin :]
        absent = [unit for unit in units if unit in run.removed or unit in passed or unit in ahead]
        kept = len(units) - len(absent)
        if not kept and run.visit is None:
            return hidden
        self.unit_evaluations += kept * len(hidden)
        with bypass(self.model, self.architecture, absent):
            return self._runner(run.batch, layer, hidden, units[len(passed) :], run.visit, beside)

    def block(self, layer: int, stream: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """One block by itself.

        Args:
            stream: (sequences, length, hidden) entering it.
            given: what the model gives it beside the stream, of `Batch.calls`.
        """
        return self._call(layer, stream, given, Beside())

    def pieces(self, num_sequences: int) -> LogitPieces:
        """How large a piece of the logits of so many sequences is made at a time."""
        on_cpu = self.pager is None or self.pager.device.type == "cpu"
        most = LOGIT_BYTES if on_cpu or self.pager is None else min(LOGIT_BYTES, self.pager.activations)
        return LogitPieces(most, 4 * self.output_width * num_sequences, self.model.device)

    def undivided(self) -> AbstractContextManager[None]:
        """While open, batches are run whole, for whoever watches modules: memory that runs out is an error."""
        return self._runner.undivided()

    def stream_bytes(self, input_ids: torch.Tensor) -> int:
        """What the stream of a batch takes.

        Args:
            input_ids: (sequences, length).
        """
        width: int = self.model.config.get_text_config().hidden_size
        itemsize: int = self.model.dtype.itemsize
        return input_ids.numel() * width * itemsize

    def together(self, num_items: int, item_bytes: int) -> Iterator[range]:
        """Divides items, such as batches, into groups that run side by side; where weights are in memory, one item a
        group.

        Args:
            item_bytes: what running one keeps in memory.
        """
        step = 1 if self.pager is None else max(1, self.pager.activations // max(1, item_bytes))
        for begin in range(0, num_items, step):
            yield range(begin, min(begin + step, num_items))

    def logits(
        self, batch: Batch, stream: torch.Tensor, piece_bytes: int = LOGIT_BYTES
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Final norm and vocabulary projection, a piece of the positions at a time; of other models what their head
        gives of the text that ends at each position, in one piece.

        Args:
            stream: (sequences, length, hidden) before the final norm.
            piece_bytes: that float32 logits may take, where the family can project part of the positions.

        Yields:
            The positions, and the model's logits there: (sequences, positions, vocabulary), in the model's dtype.
        """
        num_sequences, length = batch.input_ids.shape
        if self.head != "tokens":
            with blocks_replaced(self.architecture, self.blocks, lambda *_: self._call.inner(stream)):
                hidden = self.model.base_model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                )[0]
            yield slice(0, length), outputs_of(self.model, self.head, self.pooling, hidden, batch.token_mask)
            return
        step = max(1, piece_bytes // (4 * self.output_width * num_sequences)) if self._can_select_logits else length
        for begin in range(0, length, step):
            positions = slice(begin, min(begin + step, length))
            # Hooks of a model on several devices would bring indices where the model begins, and slices lie nowhere.
            kept = torch.arange(positions.start, positions.stop, device=stream.device)
            selection = {"logits_to_keep": positions if is_spread(self.model) else kept}
            with blocks_replaced(self.architecture, self.blocks, lambda *_: self._call.inner(stream)):
                output = self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    use_cache=False,
                    **(selection if self._can_select_logits else {}),
                )
            yield positions, output.logits


def _entering(run: Pass, stream: torch.Tensor | None) -> torch.Tensor:
    """The stream entering a pass's next block: `stream` where it has run one already, else the one it starts with."""
    if stream is not None:
        return stream
    if run.stream is None:
        return run.batch.embedded
    return run.stream() if callable(run.stream) else run.stream


def _tell_allocator(freed_is_kept: bool) -> None:
    """Has glibc reuse the memory of large temporaries, since giving it back at once costs a page fault for every page;
    or give it back, since weights of several sizes that come and go would leave holes between them.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30 if freed_is_kept else 2**20)
        libc.mallopt(trim_threshold, 2**30 if freed_is_kept else 2**20)
