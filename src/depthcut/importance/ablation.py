"""What the output loses without a set of units: the objective that searches minimise, at as little work as it takes.

A set of removed units is evaluated against the dense model on the calibration text. Removing a unit changes nothing
before it, so the stream entering each unit is kept for the set that is removed so far (the base), and a candidate is
run only from where it differs from the base. That is exact: the same blocks see the same numbers. Sequences go in
fixed batches, so that a set's value does not depend on what else was evaluated, or on how often a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from depthcut.calibration import Choices, Samples
from depthcut.journal import Journal
from depthcut.model.stream import Batch, DecoderStream
from depthcut.objectives import (
    NEXT_TOKEN_OBJECTIVES,
    POSITIONS_AT_ONCE,
    TASK_OBJECTIVES,
    MultipleChoice,
    Objective,
    Reference,
    find_objective,
)
from depthcut.types import InputError, Unit

DEFAULT_MEMORY_BUDGET = 2**30

Removed = frozenset[Unit]


@dataclass
class _KeptBatch:
    """One batch with what is kept of it between evaluations.

    Attributes:
        dense_final: the dense model's stream before the final norm.
        scored: (sequences, length) bool, the positions that count.
        choices: which sequences are answers to which question; None where each sequence has a value of its own.
        streams: stream by position, for the current base.
        references: by sequence and piece, what the objective keeps of the dense logits; None where recomputed.
    """

    batch: Batch
    dense_final: torch.Tensor
    scored: torch.Tensor
    targets: torch.Tensor
    choices: Choices | None
    streams: dict[int, torch.Tensor] = field(default_factory=dict)
    references: list[Reference] | None = None


class Ablation:
    """Evaluates removed sets for one model, text and objective.

    Where the objective is a task's, what is called a sequence below is a question with all its answers, run together.

    Args:
        objective: name of one of `OBJECTIVES` or `TASK_OBJECTIVES`.
        journal: where every result is kept; what it already holds is not computed again.
        batch_size: sequences run together; of questions, as many as have at least so many answers.
        memory_budget: bytes for kept streams and dense probabilities; what does not fit is computed anew when needed.
    """

    def __init__(
        self,
        stream: DecoderStream,
        samples: Samples,
        objective: str,
        *,
        journal: Journal | None = None,
        batch_size: int = 1,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        if objective in TASK_OBJECTIVES and samples.choices is None:
            raise InputError(
                f"objective {objective!r} compares the answers of multiple-choice questions, and "
                f"{samples.description.source} is text without them; name a file of questions as calibration"
            )
        self.stream = stream
        self.samples = samples
        self.name = objective
        self.objective: Objective = find_objective(objective)
        self._evaluations = 0.0
        self._asked: set[tuple[Removed, int]] = set()
        self._asked_cost = 0
        self._excerpts: list[Ablation] = []
        self.base: Removed = frozenset()
        self._journal = journal or Journal(None, {})
        self._batch_size, self._memory_budget = batch_size, memory_budget
        self._positions = {unit: position for position, unit in enumerate(stream.units)}
        self._per_block = len(stream.architecture.branches)
        self._memo: dict[tuple[Removed, int], dict[str, Any]] = {
            (frozenset(map(Unit.parse, line["removed"] + line["candidate"])), line["batch"]): line
            for line in self._journal.lines
            if line["text"] == samples.description.digest
        }
        with torch.no_grad():
            self._batches = [self._keep(rows) for rows in self._rows_of_batches()]
        self._share_memory(memory_budget)

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of each batch."""
        return [len(kept.scored if kept.choices is None else kept.choices.rows) for kept in self._batches]

    @property
    def weights(self) -> torch.Tensor:
        """(sequences,) share of all scored positions, float64; the same for every question."""
        if self.name in TASK_OBJECTIVES:
            return torch.full((sum(self.batch_sizes),), 1 / sum(self.batch_sizes), dtype=torch.float64)
        counts = torch.cat([kept.scored.sum(dim=-1) for kept in self._batches]).double().cpu()
        return counts / counts.sum()

    def on_excerpts(self, fraction: float) -> Ablation:
        """The same on a share of the text, with a journal in common: the first tokens of every sequence, joined.

        Short pieces of many sequences tell candidates apart better than a few whole ones. Text with pads is cut to its
        first sequences instead.
        """
        excerpts = type(self)(
            self.stream,
            self.samples.excerpts(fraction),
            self.name,
            journal=self._journal,
            batch_size=self._batch_size,
            memory_budget=self._memory_budget // 4,
        )
        self._excerpts.append(excerpts)
        return excerpts

    @property
    def asked_unit_evaluations(self) -> int:
        """What all that was asked for took to evaluate, now or by an earlier process that left it in the journal.

        The same whether a run was interrupted or not. What it takes to keep streams is not counted.
        """
        return self._asked_cost + sum(excerpts.asked_unit_evaluations for excerpts in self._excerpts)

    @property
    def candidate_evaluations(self) -> float:
        """Sets evaluated so far, in shares of the calibration text; those on excerpts of it too."""
        on_excerpts = (e.candidate_evaluations * len(e.samples.input_ids) for e in self._excerpts)
        return self._evaluations + sum(on_excerpts) / len(self.samples.input_ids)

    def rebase(self, removed: Collection[Unit]) -> None:
        """Makes a set the one that streams are kept for; those before the first difference stay valid."""
        removed = frozenset(removed)
        start = self._start(removed)
        self.base = removed
        for kept in self._batches:
            kept.streams = {position: stream for position, stream in kept.streams.items() if position <= start}

    def __call__(self, removed: Collection[Unit]) -> float:
        """The objective of one set on the whole calibration text; smaller = better."""
        return self.evaluate([frozenset(removed)])[0]

    def evaluate(self, sets: Sequence[Removed], advance: Callable[[int], None] = lambda _: None) -> list[float]:
        """The objective of each set on the whole calibration text.

        Args:
            advance: called with 1 after each batch of sequences.
        """
        values = self.per_sequence(sets, range(self.num_batches), advance)
        # Summed row by row: a matrix product rounds differently with the number of sets.
        return [math.fsum(row) for row in (values * self.weights).tolist()]

    @torch.no_grad()
    def per_sequence(
        self, sets: Sequence[Removed], batches: Iterable[int], advance: Callable[[int], None] = lambda _: None
    ) -> torch.Tensor:
        """The objective of each set on each sequence of some batches: (sets, sequences), float64.

        Sets that differ from the base only late are cheap; call `rebase` first with what they have in common.
        """
        columns = []
        for index in batches:
            # In the order of where they leave the base, so that each kept stream is walked through once.
            for removed in sorted(dict.fromkeys(sets), key=self._start):
                self._find(removed, index)
            for key in {(removed, index) for removed in sets} - self._asked:
                self._asked.add(key)
                self._asked_cost += self._memo[key]["unit_evaluations"]
            columns.append(
                torch.tensor([self._memo[removed, index]["values"] for removed in sets], dtype=torch.float64)
            )
            advance(1)
        return torch.cat(columns, dim=1)

    def _start(self, removed: Removed) -> int:
        """The position that a set has to be run from."""
        first = self._first_difference(removed)
        if first == len(self.stream.units):
            return first
        # What is removed now itself needs no running, but branches that read one stream are entered together.
        return first - first % self._per_block if self.stream.architecture.parallel else first

    def _first_difference(self, removed: Removed) -> int:
        return min((self._positions[unit] for unit in removed ^ self.base), default=len(self.stream.units))

    def _find(self, removed: Removed, index: int) -> None:
        """Evaluates a set on a batch, unless that is known."""
        if (removed, index) in self._memo:
            return
        final, unit_evaluations = self._run(removed, index)
        line = {
            "text": self.samples.description.digest,
            "removed": sorted(map(str, removed & self.base)),
            "candidate": sorted(map(str, removed - self.base)),
            "batch": index,
            "values": self._compare(self._batches[index], final),
            "unit_evaluations": unit_evaluations,
        }
        self._journal.add(line)
        self._memo[removed, index] = line
        self._evaluations += 1 / self.num_batches

    def _run(self, removed: Removed, index: int) -> tuple[torch.Tensor, int]:
        """A set's stream before the final norm for a batch, and the unit evaluations that it took."""
        kept, start = self._batches[index], self._start(removed)
        entering = self.entering(index, start)
        before = self.stream.unit_evaluations
        final = self.stream.run(kept.batch, removed, start=start, stream=entering)
        return final, self.stream.unit_evaluations - before

    def entering(self, index: int, position: int) -> torch.Tensor:
        """A batch's stream entering a position in the base, run on from the nearest one before it that is kept."""
        kept = self._batches[index]
        nearest = max((known for known in kept.streams if known <= position), default=0)
        stream = kept.streams.get(nearest, kept.batch.embedded)
        step = self._per_block if self.stream.architecture.parallel else 1
        for place in range(nearest, position, step):
            stream = self.stream.run(kept.batch, self.base, start=place, stop=place + step, stream=stream)
            if (place + step) % self._stride == 0 or place + step == position:
                kept.streams[place + step] = stream
        # The stream that was walked to is kept only while it is the latest, unless it lies on the grid.
        for known in [p for p in kept.streams if p % self._stride and p != position]:
            del kept.streams[known]
        return stream

    def _rows_of_batches(self) -> list[slice]:
        """Which sequences are run together; the answers to a question always are."""
        choices = self.samples.choices if self.name in TASK_OBJECTIVES else None
        num_rows = len(self.samples.input_ids)
        whole = [slice(row, row + 1) for row in range(num_rows)] if choices is None else choices.rows
        batches: list[slice] = []
        begin = 0
        for rows in whole:
            if rows.stop - begin >= self._batch_size or rows.stop == num_rows:
                batches.append(slice(begin, rows.stop))
                begin = rows.stop
        return batches

    def _keep(self, rows: slice) -> _KeptBatch:
        batch = self.stream.prepare(self.samples.input_ids[rows], self.samples.attention_mask[rows])
        tokens = batch.token_mask
        choices = None
        if self.samples.choices is not None and self.name in TASK_OBJECTIVES:
            choices = self.samples.choices[rows]
            tokens = choices.scored.to(tokens.device)
        if self.name in NEXT_TOKEN_OBJECTIVES:
            tokens = torch.nn.functional.pad(tokens[:, :-1] & tokens[:, 1:], (0, 1))
        targets = torch.nn.functional.pad(batch.input_ids[:, 1:], (0, 1))
        return _KeptBatch(batch, self.stream.run(batch), tokens, targets, choices)

    def _share_memory(self, budget: int) -> None:
        """Half for streams, as dense a grid of positions as fits; the rest for dense probabilities, batch by batch."""
        of_streams = sum(kept.dense_final.nbytes for kept in self._batches)
        per_position = self._per_block if self.stream.architecture.parallel else 1
        self._stride = per_position
        while of_streams * len(self.stream.units) // self._stride > budget // 2 and self._stride < len(
            self.stream.units
        ):
            self._stride += per_position
        left = budget - min(budget // 2, of_streams * len(self.stream.units) // self._stride)
        vocabulary = self.stream.model.get_output_embeddings().weight.shape[0]
        for kept in self._batches:
            left -= kept.scored.numel() * (vocabulary + 1) * 4
            if left >= 0:
                kept.references = []

    def _compare(self, kept: _KeptBatch, final: torch.Tensor) -> list[float]:
        """The objective of each sequence of a batch from its stream before the final norm."""
        totals = torch.zeros(len(final), dtype=torch.float64)
        references = iter(self._references(kept))
        for positions, logits in self.stream.logits(kept.batch, final):
            for row in range(len(final)):
                for begin in range(positions.start, positions.stop, POSITIONS_AT_ONCE):
                    part = slice(begin, min(begin + POSITIONS_AT_ONCE, positions.stop))
                    reference = next(references)
                    if not bool(kept.scored[row, part].any()):
                        continue
                    piece = logits[row, begin - positions.start : part.stop - positions.start].float()
                    values = self.objective.at_positions(reference, piece, kept.targets[row, part])
                    totals[row] += values[kept.scored[row, part]].double().sum().cpu()
        counts = kept.scored.sum(dim=-1).double().cpu()
        values = self.objective.of_sequence(totals, counts)
        if kept.choices is not None and isinstance(self.objective, MultipleChoice):
            values = torch.stack(
                [self.objective.of_question(values[rows], kept.choices.right[rows]) for rows in kept.choices.rows]
            )
        return values.tolist()

    def _references(self, kept: _KeptBatch) -> Iterable[Reference]:
        """What the objective keeps of the dense logits, piece by piece as `_compare` walks through them."""
        if kept.references:
            return kept.references
        made = self._make_references(kept)
        if kept.references is None:
            return made
        kept.references = list(made)
        return kept.references

    def _make_references(self, kept: _KeptBatch) -> Iterable[Reference]:
        for positions, logits in self.stream.logits(kept.batch, kept.dense_final):
            for row in range(len(logits)):
                for begin in range(positions.start, positions.stop, POSITIONS_AT_ONCE):
                    end = min(begin + POSITIONS_AT_ONCE, positions.stop)
                    yield self.objective.reference(logits[row, begin - positions.start : end - positions.start].float())
