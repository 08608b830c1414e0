"""Compares logits with the dense model's, or with the text, a few positions at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch

from depthcut.ablation.objectives import POSITIONS_AT_ONCE, Objective, Reference
from depthcut.model.device import widest_type
from depthcut.model.shortage import LogitPieces, offer
from depthcut.model.stream import LOGIT_BYTES, Batch, DecoderStream


def predicting(tokens: torch.Tensor) -> torch.Tensor:
    """(sequences, length) bool: the positions that hold a token and are followed by one."""
    return torch.nn.functional.pad(tokens[:, :-1] & tokens[:, 1:], (0, 1))


def following(input_ids: torch.Tensor) -> torch.Tensor:
    """The token after each position, (sequences, length); 0 after the last, which must not count."""
    return torch.nn.functional.pad(input_ids[:, 1:], (0, 1))


def walk(
    stream: DecoderStream, batch: Batch, final: torch.Tensor, piece_bytes: int = LOGIT_BYTES
) -> Iterator[tuple[tuple[int, slice], torch.Tensor]]:
    """The logits of a batch, a few positions of one sequence at a time, so that temporaries stay in a CPU's cache.

    Args:
        final: (sequences, length, hidden) hidden states before the final norm.
        piece_bytes: as for `DecoderStream.logits`.

    Yields:
        The sequence and its positions, and float32 logits (positions, vocabulary). How positions are grouped depends
        only on the shape of the batch and on the bytes of a piece.
    """
    for positions, logits in stream.logits(batch, final, piece_bytes):
        for row in range(len(logits)):
            for begin in range(positions.start, positions.stop, POSITIONS_AT_ONCE):
                part = slice(begin, min(begin + POSITIONS_AT_ONCE, positions.stop))
                piece = logits[row, begin - positions.start : part.stop - positions.start]
                yield (row, part), piece.float()


class ComparedBatch:
    """One batch with the dense model's results, which outputs are compared with.

    Args:
        dense_final: (sequences, length, hidden) the dense model's hidden states before the final norm.
        scored: (sequences, length) bool, the positions that count.
        keeps_references: whether the objective's references to the dense logits stay in memory after the first
            comparison; otherwise each comparison computes them again, by a vocabulary projection.
    """

    def __init__(
        self, batch: Batch, dense_final: torch.Tensor, scored: torch.Tensor, *, keeps_references: bool = False
    ) -> None:
        self.batch, self.dense_final = batch, dense_final
        # On the host, so that what counts is known without asking the device.
        self.scored = scored.cpu()
        self._counts = self.scored.sum(dim=-1).double()
        self._places: dict[tuple[int, int], torch.Tensor | None] = {}
        self.targets = following(batch.input_ids)
        self.keeps_references = keeps_references
        self._references: list[Reference] = []
        self._pieces: LogitPieces | None = None
        self._made_for = 0
        offer(self)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the dense hidden states and of the references in memory."""
        return self.dense_final.nbytes + sum(part.nbytes for reference in self._references for part in reference)

    def compare(
        self, objective: Objective, dense: DecoderStream, stream: DecoderStream, batch: Batch, final: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the objective over the scored positions, and the number of those: (sequences,) float64 each.

        Args:
            dense: the dense model.
            stream: the model whose output is compared; `batch` and `final` belong to it.

        Waits for the device once.
        """
        totals: dict[int, torch.Tensor] = {}
        for sequence, values in self.values(objective, dense, stream, batch, final):
            total = values.sum()
            totals[sequence] = totals[sequence] + total if sequence in totals else total
        sums = torch.zeros(len(final), dtype=torch.float64)
        if totals:
            sums[list(totals)] = torch.stack(list(totals.values())).cpu().double()
        return sums, self._counts

    def values(
        self, objective: Objective, dense: DecoderStream, stream: DecoderStream, batch: Batch, final: torch.Tensor
    ) -> list[tuple[int, torch.Tensor]]:
        """The objective at the positions that count, as for `compare`: a sequence, and (positions,) of it where the
        logits are, float64 where there is any.

        Raises:
            ResourceError: there is no memory for one position.
        """
        if self._pieces is None:
            self._pieces = dense.pieces(len(self.targets))
        return self._pieces.run(lambda size: list(self._values(objective, dense, stream, batch, final, size)))

    def give_up(self) -> bool:
        """Gives up the references; returns whether there were any."""
        had = bool(self._references)
        self._references, self.keeps_references = [], False
        return had

    def _values(
        self,
        objective: Objective,
        dense: DecoderStream,
        stream: DecoderStream,
        batch: Batch,
        final: torch.Tensor,
        piece_bytes: int,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        pieces = walk(stream, batch, final, piece_bytes)
        references: Iterable[Reference] = itertools.repeat(())
        if objective.needs_dense:
            references = self._dense_references(objective, dense, piece_bytes)
        for (at, logits), reference in zip(pieces, references, strict=False):
            if bool(self.scored[at].any()):
                values = objective.at_positions(reference, logits, self.targets[at].to(logits.device))
                places = self._counting(at, logits.device)
                yield at[0], (values if places is None else values[places]).to(widest_type(values.device))

    def _counting(self, at: tuple[int, slice], device: torch.device) -> torch.Tensor | None:
        """(positions that count,) their places in a piece; None where all of them do."""
        piece = at[0], at[1].start
        if piece not in self._places:
            counted = self.scored[at]
            self._places[piece] = None if bool(counted.all()) else counted.nonzero()[:, 0].to(device)
        return self._places[piece]

    def _dense_references(self, objective: Objective, dense: DecoderStream, piece_bytes: int) -> Iterable[Reference]:
        """One for each piece of `walk`, in its order."""
        if self._references and self._made_for == piece_bytes:
            return self._references
        self._references = []
        pieces = walk(dense, self.batch, self.dense_final, piece_bytes)
        made = (objective.reference(logits) for _, logits in pieces)
        if not self.keeps_references:
            return made
        self._references, self._made_for = list(made), piece_bytes
        return self._references
