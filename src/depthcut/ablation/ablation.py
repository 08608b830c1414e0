"""What the output loses without a set of units: the objective that searches minimise, at as little work as it takes.

A set of removed units is evaluated against the dense model on the calibration text. Removing a unit changes nothing
before it, so the stream entering each unit is kept for the set that is removed so far (the base), and a candidate is
run only from where it differs from the base. That is exact: the same blocks see the same numbers. Sequences go in
fixed batches, so that a set's value does not depend on what else was evaluated, or on how often a run was interrupted.

Of several processes each evaluates every set on batches of its own, so that streams are walked through once; where
batches do not divide evenly, some processes share a batch and divide the sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from depthcut.ablation.objectives import (
    NEXT_TOKEN_OBJECTIVES,
    POSITIONS_AT_ONCE,
    TASK_OBJECTIVES,
    MultipleChoice,
    Objective,
    Reference,
    find_objective,
)
from depthcut.calibration import Choices, Samples
from depthcut.model.stream import Batch, DecoderStream, Run
from depthcut.process.journal import Journal
from depthcut.process.ranks import ALONE, Ranks
from depthcut.types import InputError, Unit

DEFAULT_MEMORY_BUDGET = 2**30

STREAMS_ABREAST = 4
"""About how many streams' room a set takes that is run beside others, with what its block computes with."""

Removed = frozenset[Unit]
Key = tuple[Removed, int]
"""A set, and the batch that it is evaluated on."""


def stride_that_fits(stream_bytes: float, num_units: int, per_position: int, budget: int) -> int:
    """How many units apart streams are kept, so that they take half of a budget at most.

    Args:
        stream_bytes: of the whole text at one position.
        per_position: units from one position to the next that a pass can be entered at.
    """
    stride = per_position
    while stream_bytes * num_units // stride > budget // 2 and stride < num_units:
        stride += per_position
    return stride


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
        ranks: the processes that evaluate together. All of them must ask for the same, in the same order.
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
        ranks: Ranks = ALONE,
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
        self._asked: set[Key] = set()
        self._asked_cost = 0
        self._walked_cost = 0
        self._excerpts: list[Ablation] = []
        self.base: Removed = frozenset()
        self._journal = journal or Journal(None, {})
        self._batch_size, self._memory_budget, self._ranks = batch_size, memory_budget, ranks
        self._positions = {unit: position for position, unit in enumerate(stream.units)}
        self._per_block = len(stream.architecture.branches)
        self._memo = self._by_key(self._journal.lines)
        self._own = self._by_key(self._journal.own)
        self._num_known = Counter(index for _, index in self._memo)
        self._rows = self._rows_of_batches()
        self._reached = [0] * len(self._rows)
        with torch.no_grad():
            self._batches = self._keep_all(self._prepared())
        self._share_memory(memory_budget)

    @property
    def num_batches(self) -> int:
        return len(self._rows)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of each batch."""
        if self.name in TASK_OBJECTIVES and self.samples.choices is not None:
            return [len(self.samples.choices[rows].rows) for rows in self._rows]
        return [rows.stop - rows.start for rows in self._rows]

    @property
    def weights(self) -> torch.Tensor:
        """(sequences,) share of all scored positions, float64; the same for every question."""
        if self.name in TASK_OBJECTIVES:
            return torch.full((sum(self.batch_sizes),), 1 / sum(self.batch_sizes), dtype=torch.float64)
        counts = torch.cat([self._scored(rows).sum(dim=-1) for rows in self._rows]).double()
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
            ranks=self._ranks,
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
        """Sets evaluated so far by this process, in shares of the calibration text; those on excerpts of it too."""
        on_excerpts = (e.candidate_evaluations * len(e.samples.input_ids) for e in self._excerpts)
        return self._evaluations + sum(on_excerpts) / len(self.samples.input_ids)

    @property
    def asked_candidate_evaluations(self) -> float:
        """Sets that were asked for, in shares of the calibration text; the same whoever evaluated them, and when."""
        on_excerpts = (e.asked_candidate_evaluations * len(e.samples.input_ids) for e in self._excerpts)
        return len(self._asked) / self.num_batches + sum(on_excerpts) / len(self.samples.input_ids)

    @property
    def whole_unit_evaluations(self) -> int:
        """What all that was asked for takes one process that keeps every stream, the dense pass and walking included.

        The same whoever evaluated it, and however often the run was interrupted.
        """
        dense = len(self.stream.units) * len(self.samples.input_ids)
        own = dense + self._asked_cost + self._walked_cost
        return own + sum(excerpts.whole_unit_evaluations for excerpts in self._excerpts)

    def rebase(self, removed: Collection[Unit]) -> None:
        """Makes a set the one that streams are kept for; those before the first difference stay valid."""
        removed = frozenset(removed)
        start = self._start(removed)
        self.base = removed
        self._reached = [min(reached, start) for reached in self._reached]
        for kept in self._batches.values():
            kept.streams = {position: stream for position, stream in kept.streams.items() if position <= start}

    def __call__(self, removed: Collection[Unit]) -> float:
        """The objective of one set on the whole calibration text; smaller = better."""
        return self.evaluate([frozenset(removed)])[0]

    def evaluate(self, sets: Sequence[Removed], advance: Callable[[float], None] = lambda _: None) -> list[float]:
        """The objective of each set on the whole calibration text.

        Args:
            advance: called with the batches of sequences that were done since the last call.
        """
        values = self.per_sequence(sets, range(self.num_batches), advance)
        # Summed row by row: a matrix product rounds differently with the number of sets.
        return [math.fsum(row) for row in (values * self.weights).tolist()]

    @torch.no_grad()
    def per_sequence(
        self, sets: Sequence[Removed], batches: Iterable[int], advance: Callable[[float], None] = lambda _: None
    ) -> torch.Tensor:
        """The objective of each set on each sequence of some batches: (sets, sequences), float64.

        Sets that differ from the base only late are cheap; call `rebase` first with what they have in common.
        """
        batches = list(batches)
        self._find_all(self._in_order(sets, batches), lambda share: advance(share * len(batches)))
        columns = [
            torch.tensor([self._memo[removed, index]["values"] for removed in sets], dtype=torch.float64)
            for index in batches
        ]
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def ahead(self, keys: Iterable[Key]) -> None:
        """Evaluates at one go what will be asked for set by set, so that several processes can divide it.

        Each set is the base while it is evaluated: its neighbours should agree with it on a long start of the model.
        """
        base = self.base
        self._find_all(list(keys), each_as_base=True)
        self.rebase(base)

    def _find_all(
        self, keys: Sequence[Key], advance: Callable[[float], None] = lambda _: None, *, each_as_base: bool = False
    ) -> None:
        """Evaluates what is not known, this process its share, and learns what the others found.

        Args:
            advance: called with the share of the work that was done since the last call.
        """
        keys = list(dict.fromkeys(keys))
        missing = [key for key in keys if key not in self._memo]
        mine = frozenset(self._share(missing))
        # Where weights are paged, each is brought in once for all sets; else one set after the other takes less memory.
        abreast = self.stream.pager is not None and not each_as_base
        known = self._find_abreast([key for key in keys if key in mine]) if abreast else {}
        found = []
        for removed, index in keys:
            if each_as_base:
                self.rebase(removed)
            if (removed, index) not in self._asked:
                self._walk(index, self._start(removed))
            if (removed, index) in mine:
                found.append(known.get((removed, index)) or self._find(removed, index))
                advance(1 / len(mine))
        if missing:
            self._learn(len(missing), found)
        if not mine:
            advance(1)
        for key in [key for key in keys if key not in self._asked]:
            self._asked.add(key)
            self._asked_cost += self._memo[key]["unit_evaluations"]

    def _in_order(self, sets: Sequence[Removed], batches: Sequence[int]) -> list[Key]:
        """Batch by batch, and in the order of where sets leave the base, so that each stream is walked through once."""
        in_order = sorted(dict.fromkeys(sets), key=self._start)
        return [(removed, index) for index in batches for removed in in_order]

    def _share(self, missing: Sequence[Key]) -> list[Key]:
        """What this process evaluates of what nobody has."""
        places: Counter[int] = Counter()
        share = []
        for removed, index in missing:
            sharing = self._sharing(index)
            # Where sets come one by one, they still go round.
            place = (self._num_known[index] + places[index]) % len(sharing)
            places[index] += 1
            if sharing[place] == self._ranks.index:
                share.append((removed, index))
        return share

    def _sharing(self, index: int) -> range:
        """The processes that evaluate a batch: one each, of the last batches that do not divide evenly several."""
        count = self._ranks.count
        left_over = len(self._rows) % count
        whole = len(self._rows) - left_over
        return range(index % count, count, count) if index < whole else range(index - whole, count, left_over)

    def _prepared(self) -> list[int]:
        """The batches that this process evaluates."""
        return [index for index in range(len(self._rows)) if self._ranks.index in self._sharing(index)]

    def _learn(self, num_missing: int, found: list[dict[str, Any]]) -> None:
        """Takes in what every process found of the missing values."""
        shares = self._ranks.gather((num_missing, found))
        assert {missing for missing, _ in shares} == {sum(len(lines) for _, lines in shares)}, "ranks are out of step"
        for _, lines in shares:
            self._memo |= self._by_key(lines)
            self._num_known.update(line["batch"] for line in lines)

    def _by_key(self, lines: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        return {
            (frozenset(map(Unit.parse, line["removed"] + line["candidate"])), line["batch"]): line
            for line in lines
            if line["text"] == self.samples.description.digest
        }

    def _walk(self, index: int, position: int) -> None:
        """Counts what running a batch's stream on to a position takes one process that keeps every stream."""
        units = self.stream.units[self._reached[index] : position]
        rows = self._rows[index]
        self._walked_cost += (rows.stop - rows.start) * sum(unit not in self.base for unit in units)
        self._reached[index] = max(self._reached[index], position)

    def _start(self, removed: Removed) -> int:
        """The position that a set has to be run from."""
        first = self._first_difference(removed)
        if first == len(self.stream.units):
            return first
        # What is removed now itself needs no running, but branches that read one stream are entered together.
        return first - first % self._per_block if self.stream.architecture.parallel else first

    def _first_difference(self, removed: Removed) -> int:
        return min((self._positions[unit] for unit in removed ^ self.base), default=len(self.stream.units))

    def _find(self, removed: Removed, index: int) -> dict[str, Any]:
        """Evaluates a set on a batch, unless this process did so before, and writes it down."""
        if (removed, index) in self._own:
            return self._own[removed, index]
        return self._write_down(removed, index, *self._run(removed, index))

    def _write_down(self, removed: Removed, index: int, final: torch.Tensor, unit_evaluations: int) -> dict[str, Any]:
        """What a set costs on a batch, from its stream before the final norm.

        Raises:
            InputError: that is not finite.
        """
        values = self._compare(self._batches[index], final)
        if not all(map(math.isfinite, values)):
            raise self._not_finite(removed, index)
        line = {
            "text": self.samples.description.digest,
            "removed": sorted(map(str, removed & self.base)),
            "candidate": sorted(map(str, removed - self.base)),
            "batch": index,
            "values": values,
            "unit_evaluations": unit_evaluations,
        }
        self._journal.add(line)
        self._evaluations += 1 / self.num_batches
        return line

    def _not_finite(self, removed: Removed, index: int) -> InputError:
        """What to say of a set whose value on a batch is NaN or infinite, which must never win: where that begins."""
        first: list[str] = []

        def look(unit: Unit | int, _: torch.Tensor, after: torch.Tensor) -> None:
            if not (first or isinstance(unit, int) or bool(torch.isfinite(after).all())):
                first.append(str(unit))

        self.stream.run(self._batches[index].batch, removed, visit=look)
        where = f"the activations at {first[0]}" if first else f"{self.name}, from the logits,"
        without = f" without {' '.join(map(str, sorted(removed)))}" if removed else ""
        return InputError(
            f"{where} {'are' if first else 'is'} not finite{without} (NaN or infinite); check the weights, or load the "
            "model with --dtype float32"
        )

    def _run(self, removed: Removed, index: int) -> tuple[torch.Tensor, int]:
        """A set's stream before the final norm for a batch, and the unit evaluations that it took."""
        kept, start = self._batches[index], self._start(removed)
        entering = self.entering(index, start)
        before = self.stream.unit_evaluations
        final = self.stream.run(kept.batch, removed, start=start, stream=entering)
        return final, self.stream.unit_evaluations - before

    def _find_abreast(self, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        """Evaluates sets on batches block by block, all that fit into memory side by side."""
        keys = [key for key in keys if key not in self._own]
        found = {}
        item_bytes = STREAMS_ABREAST * max((kept.batch.embedded.nbytes for kept in self._batches.values()), default=0)
        for together in self.stream.together(len(keys), item_bytes):
            part = [keys[place] for place in together]
            finals = self._run_abreast(part)
            for (removed, index), final in zip(part, finals, strict=True):
                kept_units = sum(unit not in removed for unit in self.stream.units[self._start(removed) :])
                found[removed, index] = self._write_down(removed, index, final, kept_units * len(final))
        return found

    def _run_abreast(self, keys: Sequence[Key]) -> list[torch.Tensor]:
        """The streams of sets on batches before the final norm: the base goes ahead, and sets leave it in passing."""
        runs: list[Run] = []
        needed: dict[int, set[int]] = {}
        for removed, index in keys:
            needed.setdefault(index, set()).add(self._start(removed))
        for index, positions in needed.items():
            streams = self._batches[index].streams
            missing = positions - streams.keys() - {0}
            if missing:
                nearest = max((known for known in streams if known < min(missing)), default=0)
                visit = partial(self._keep_passing, index, missing)
                runs.append(
                    Run(self._batches[index].batch, self.base, nearest, max(missing), streams.get(nearest), visit)
                )
        num_of_base = len(runs)
        for removed, index in keys:
            start = self._start(removed)
            runs.append(Run(self._batches[index].batch, removed, start, stream=partial(self._kept, index, start)))
        finals = self.stream.run_together(runs)[num_of_base:]
        for index in needed:
            streams = self._batches[index].streams
            for position in [position for position in streams if position % self._stride]:
                del streams[position]
        return finals

    def _keep_passing(
        self, index: int, positions: Collection[int], unit: Unit | int, _: torch.Tensor, after: torch.Tensor
    ) -> None:
        """Keeps what enters some positions, and the grid's, as the base of a batch comes by."""
        if isinstance(unit, int):
            position = (unit + 1) * self._per_block
        elif self.stream.architecture.parallel:
            return
        else:
            position = self._positions[unit] + 1
        if position <= max(positions) and (position in positions or position % self._stride == 0):
            self._batches[index].streams[position] = after

    def _kept(self, index: int, position: int) -> torch.Tensor:
        kept = self._batches[index]
        return kept.streams[position] if position else kept.batch.embedded

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

    def _keep_all(self, indices: Sequence[int]) -> dict[int, _KeptBatch]:
        """The batches with the dense model's streams."""
        samples = self.samples
        kept = {}
        sizes = [self.stream.stream_bytes(samples.input_ids[self._rows[index]]) for index in indices]
        for together in self.stream.together(len(indices), STREAMS_ABREAST * max(sizes, default=0)):
            rows = [self._rows[indices[place]] for place in together]
            batches = [self.stream.prepare(samples.input_ids[part], samples.attention_mask[part]) for part in rows]
            finals = self.stream.run_together([Run(batch) for batch in batches])
            for place, part, batch, final in zip(together, rows, batches, finals, strict=True):
                choices = None
                if samples.choices is not None and self.name in TASK_OBJECTIVES:
                    choices = samples.choices[part]
                targets = torch.nn.functional.pad(batch.input_ids[:, 1:], (0, 1))
                scored = self._scored(part).to(batch.input_ids.device)
                kept[indices[place]] = _KeptBatch(batch, final, scored, targets, choices)
        return kept

    def _scored(self, rows: slice) -> torch.Tensor:
        """(sequences, length) bool, the positions that count."""
        tokens = self.samples.attention_mask[rows].bool()
        if self.samples.choices is not None and self.name in TASK_OBJECTIVES:
            tokens = self.samples.choices[rows].scored
        if self.name in NEXT_TOKEN_OBJECTIVES:
            tokens = torch.nn.functional.pad(tokens[:, :-1] & tokens[:, 1:], (0, 1))
        return tokens

    def _share_memory(self, budget: int) -> None:
        """Half for streams, as dense a grid of positions as fits; the rest for dense probabilities, batch by batch."""
        of_streams = sum(kept.dense_final.nbytes for kept in self._batches.values())
        per_position = self._per_block if self.stream.architecture.parallel else 1
        self._stride = stride_that_fits(of_streams, len(self.stream.units), per_position, budget)
        left = budget - min(budget // 2, of_streams * len(self.stream.units) // self._stride)
        vocabulary = self.stream.model.get_output_embeddings().weight.shape[0]
        for kept in self._batches.values():
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
