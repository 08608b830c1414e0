"""The objective that searches minimise: how much worse the output is without a set of units.

A set of removed units is compared with the dense model on the calibration text. The base is the set that is removed so
far; its hidden states are cached, and a candidate runs only from the first unit in which it differs from the base
(`prefix_cache.py`). Batches are fixed, so that the value of a set does not depend on which other sets were evaluated,
or on how often a run was interrupted. Several processes divide the work (`division.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from depthcut.ablation.comparator import ComparedBatch
from depthcut.ablation.division import Division
from depthcut.ablation.ledger import Key, Ledger, Removed
from depthcut.ablation.memory import (
    DEFAULT_MEMORY_BUDGET,
    EXCERPTS_SHARE_OF_BUDGET,
    bytes_of_next,
    reference_bytes,
)
from depthcut.ablation.objectives import Objective, find_objective
from depthcut.ablation.prefix_cache import PrefixCache
from depthcut.ablation.text import ObjectiveText, text_of
from depthcut.calibration import Samples
from depthcut.model.stream import Batch, DecoderStream
from depthcut.process.journal import Journal
from depthcut.process.ranks import ALONE, Ranks
from depthcut.types import InputError, Unit

STREAMS_ABREAST = 2
"""Memory of one set that runs beside others, in multiples of its hidden states: before and after a block."""


class Ablation:
    """Evaluates removed sets for one model, text and objective.

    For the objective of a task, "sequence" below means a question with all its answers, which run together.

    Args:
        objective: one of `OBJECTIVES`, with settings.
        journal: stores every result; results that it already holds are not computed again.
        batch_size: sequences per batch; for questions, a batch is filled up to at least that many answers.
        memory_budget: bytes for cached hidden states and references; what does not fit is computed again when needed.
        ranks: the processes that evaluate together. All must make the same calls, in the same order.
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
        self._text = text_of(samples, objective, batch_size)
        self.stream, self.samples, self.name = stream, samples, objective
        self.objective: Objective = find_objective(objective)
        self._rows = self._text.rows
        self._batch_size, self._memory_budget, self._ranks = batch_size, memory_budget, ranks
        self._ledger = Ledger(journal or Journal(None, {}), samples.description.digest)
        self._division = Division(len(self._rows), ranks)
        # The dense pass leaves the states of the empty set.
        self._reached = [len(stream.units)] * len(self._rows)
        self._may_follow: set[Key] = set()
        self._excerpts: list[Ablation] = []
        with torch.no_grad():
            rows = {index: self._rows[index] for index in self._division.own_batches()}
            ids, mask = samples.input_ids, samples.attention_mask
            batches = {index: stream.prepare(ids[part], mask[part]) for index, part in rows.items()}
            self._cache = PrefixCache(stream, batches, memory_budget)
            self._compared = _compared_batches(self._cache, batches, self._text)
        _keep_references(self._compared, self._cache, memory_budget)

    @property
    def num_batches(self) -> int:
        return len(self._rows)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of each batch."""
        return self._text.batch_sizes

    @property
    def weights(self) -> torch.Tensor:
        """(sequences,) share of all scored positions, float64; the same for every question."""
        return self._text.weights

    @property
    def base(self) -> Removed:
        """The set that hidden states are kept for."""
        return self._cache.base

    @property
    def kept_bytes(self) -> int:
        """Bytes held between evaluations: hidden states of the base, the dense model's stream and references."""
        compared = sum(kept.batch.embedded.nbytes + kept.kept_bytes for kept in self._compared.values())
        return self._cache.kept_bytes + compared

    def on_excerpts(self, fraction: float) -> Ablation:
        """The same objective on the first tokens of every sequence, joined into sequences; it uses the same journal.

        Short pieces of many sequences distinguish candidates better than a few whole sequences. Of text with pads, the
        first sequences are taken instead.
        """
        excerpts = type(self)(
            self.stream,
            self.samples.excerpts(fraction),
            self.name,
            journal=self._ledger.journal,
            batch_size=self._batch_size,
            memory_budget=self._memory_budget // EXCERPTS_SHARE_OF_BUDGET,
            ranks=self._ranks,
        )
        self._excerpts.append(excerpts)
        return excerpts

    @property
    def asked_unit_evaluations(self) -> int:
        """Unit evaluations of all sets asked for, whether this process ran them or read their values from the journal.

        Independent of interruptions. Running the base up to where candidates differ from it is not counted.
        """
        return self._ledger.asked_cost + sum(excerpts.asked_unit_evaluations for excerpts in self._excerpts)

    @property
    def candidate_evaluations(self) -> float:
        """Sets that this process has evaluated, in passes over the calibration text; excerpts count by their length."""
        on_excerpts = (e.candidate_evaluations * len(e.samples.input_ids) for e in self._excerpts)
        return self._ledger.num_evaluated / self.num_batches + sum(on_excerpts) / len(self.samples.input_ids)

    @property
    def asked_candidate_evaluations(self) -> float:
        """Sets asked for, in passes over the calibration text; the same for a search that was resumed or divided."""
        on_excerpts = (e.asked_candidate_evaluations * len(e.samples.input_ids) for e in self._excerpts)
        return len(self._ledger.asked) / self.num_batches + sum(on_excerpts) / len(self.samples.input_ids)

    @property
    def whole_unit_evaluations(self) -> int:
        """Unit evaluations that one process with unlimited memory takes for the dense pass and all sets asked for,
        however many processes there were and however often they were interrupted.
        """
        dense = len(self.stream.units) * len(self.samples.input_ids)
        own = dense + self._ledger.asked_cost + self._ledger.walked_cost
        return own + sum(excerpts.whole_unit_evaluations for excerpts in self._excerpts)

    def rebase(self, removed: Collection[Unit]) -> None:
        """Makes a set the base; cached hidden states before the first difference stay valid."""
        base = frozenset(removed)
        if base != self.base:
            start, end = self._cache.rebase(base), len(self.stream.units)
            reached = enumerate(self._reached)
            self._reached = [end if (base, i) in self._may_follow else min(before, start) for i, before in reached]
            self._may_follow = set()

    def __call__(self, removed: Collection[Unit]) -> float:
        """The objective of one set on the whole calibration text; smaller = better."""
        return self.evaluate([frozenset(removed)])[0]

    def evaluate(self, sets: Sequence[Removed], advance: Callable[[float], None] = lambda _: None) -> list[float]:
        """The objective of each set on the whole calibration text.

        Args:
            advance: called with the number of batches done since the last call.
        """
        values = self.per_sequence(sets, range(self.num_batches), advance)
        # Summed row by row: a matrix product rounds differently with the number of sets.
        return [math.fsum(row) for row in (values * self.weights).tolist()]

    @torch.no_grad()
    def per_sequence(
        self,
        sets: Sequence[Removed],
        batches: Iterable[int],
        advance: Callable[[float], None] = lambda _: None,
        *,
        as_next: bool = False,
    ) -> torch.Tensor:
        """The objective of each set on each sequence of some batches: (sets, sequences), float64.

        Sets that first differ from the base in a late unit are cheap; call `rebase` first with their common units.

        Args:
            as_next: cache the hidden states of these sets until the base changes, so that one of them can become the
                next base without running again.
        """
        batches = list(batches)
        keys = self._in_order(sets, batches)
        if as_next:
            self._may_follow |= {key for key in keys if key not in self._ledger.asked}
        self._find_all(keys, lambda share: advance(share * len(batches)))
        columns = [
            torch.tensor([self._ledger.values((removed, index)) for removed in sets], dtype=torch.float64)
            for index in batches
        ]
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def ahead(self, keys: Iterable[Key]) -> None:
        """Evaluates in one call the sets that a search will ask for one by one, so that processes can divide them.

        Each set is the base while it is evaluated, so sets that follow each other should differ only in late units.
        """
        base = self.base
        self._find_all(list(keys), each_as_base=True)
        self.rebase(base)

    def _find_all(
        self, keys: Sequence[Key], advance: Callable[[float], None] = lambda _: None, *, each_as_base: bool = False
    ) -> None:
        """Evaluates this process's share of the unknown values, and gathers those of the other processes.

        Args:
            advance: called with the fraction of the work done since the last call.
        """
        keys = list(dict.fromkeys(keys))
        missing = [key for key in keys if key not in self._ledger]
        mine = frozenset(self._division.share(missing, self._ledger.num_known))
        # Where weights are paged, each is brought in once for all sets; else one set after the other takes less memory.
        abreast = self.stream.pager is not None and not each_as_base
        known = self._find_abreast([key for key in keys if key in mine]) if abreast else {}
        found = []
        for removed, index in keys:
            if each_as_base:
                self.rebase(removed)
            if (removed, index) not in self._ledger.asked:
                self._count_walk(index, self._cache.start(removed))
            if (removed, index) in mine:
                found.append(known.get((removed, index)) or self._find(removed, index))
                advance(1 / len(mine))
        if missing:
            self._ledger.learn(self._ranks, len(missing), found)
        if not mine:
            advance(1)
        self._ledger.count_asked(keys)

    def _in_order(self, sets: Sequence[Removed], batches: Sequence[int]) -> list[Key]:
        """Sorted by batch, then by where a set first differs from the base, so that the base runs once a batch."""
        return [(removed, i) for i in batches for removed in sorted(dict.fromkeys(sets), key=self._cache.start)]

    def _count_walk(self, index: int, position: int) -> None:
        """Counts the unit evaluations for running a batch's base up to a position, with unlimited memory."""
        units = self.stream.units[self._reached[index] : position]
        rows = self._rows[index]
        self._ledger.walked_cost += (rows.stop - rows.start) * sum(unit not in self.base for unit in units)
        self._reached[index] = max(self._reached[index], position)

    def _find(self, removed: Removed, index: int) -> dict[str, Any]:
        """Evaluates a set on a batch, unless this process did so before, and writes it down."""
        if line := self._ledger.own_line((removed, index)):
            return line
        run = self._cache.run(removed, index, as_next=(removed, index) in self._may_follow)
        return self._write_down(removed, index, *run)

    def _find_abreast(self, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        """Evaluates sets on batches side by side, block by block, as many at a time as fit into memory."""
        # Those that begin late need none of the first blocks.
        keys = sorted((k for k in keys if self._ledger.own_line(k) is None), key=lambda k: self._cache.start(k[0]))
        found = {}
        item_bytes = STREAMS_ABREAST * max((kept.batch.embedded.nbytes for kept in self._compared.values()), default=0)
        for together in self.stream.together(len(keys), item_bytes):
            part = [keys[place] for place in together]
            finals = self._cache.run_abreast(part, as_next=self._may_follow.issuperset(part))
            for (removed, index), final in zip(part, finals, strict=True):
                kept_units = sum(unit not in removed for unit in self.stream.units[self._cache.start(removed) :])
                found[removed, index] = self._write_down(removed, index, final, kept_units * len(final))
        return found

    def _write_down(self, removed: Removed, index: int, final: torch.Tensor, unit_evaluations: int) -> dict[str, Any]:
        """The journal line of a set on a batch, from its hidden states before the final norm.

        Raises:
            InputError: a value is not finite.
        """
        compared = self._compared[index]
        totals, counts = compared.compare(self.objective, self.stream, self.stream, compared.batch, final)
        of_sequences = self.objective.of_sequence(totals, counts)
        values = self._text.values(self.objective, index, of_sequences).tolist()
        if not all(map(math.isfinite, values)):
            raise _not_finite(self.name, self.stream, compared.batch, removed)
        return self._ledger.write_down((removed, index), self.base, values, unit_evaluations)


def _compared_batches(cache: PrefixCache, batches: dict[int, Batch], text: ObjectiveText) -> dict[int, ComparedBatch]:
    """The batches of this process, with the dense model's hidden states before the final norm."""
    indices, compared = list(batches), {}
    item_bytes = STREAMS_ABREAST * max((batch.embedded.nbytes for batch in batches.values()), default=0)
    for together in cache.stream.together(len(indices), item_bytes):
        chosen = [indices[place] for place in together]
        for index, final in zip(chosen, cache.dense(chosen), strict=True):
            compared[index] = ComparedBatch(batches[index], final, text.scored(index))
    return compared


def _keep_references(batches: dict[int, ComparedBatch], cache: PrefixCache, memory_budget: int) -> None:
    """Lets as many batches keep their references as fit into what hidden states leave of the budget."""
    most_bytes = cache.most_bytes
    left: float = memory_budget - min(memory_budget // 2, most_bytes) - bytes_of_next(most_bytes, memory_budget)
    for compared in batches.values():
        left -= reference_bytes(compared.scored.numel(), cache.stream.output_width)
        compared.keeps_references = left >= 0


def _not_finite(objective: str, stream: DecoderStream, batch: Batch, removed: Removed) -> InputError:
    """The error for a set whose objective is NaN or infinite; names the first unit whose output is not finite."""
    first: list[str] = []

    def look(unit: Unit | int, _: torch.Tensor, after: torch.Tensor) -> None:
        if not (first or isinstance(unit, int) or bool(torch.isfinite(after).all())):
            first.append(str(unit))

    stream.run(batch, removed, visit=look)
    where = f"the activations at {first[0]}" if first else f"{objective}, from the logits,"
    without = f" without {' '.join(map(str, sorted(removed)))}" if removed else ""
    return InputError(
        f"{where} {'are' if first else 'is'} not finite{without} (NaN or infinite); check the weights, or load the "
        "model with --dtype float32"
    )
