"""Searches that judge a removed set by what the output loses after a cheap repair.

The repair of a set is a function of the set alone, so that candidates can be evaluated in any order and from where they
differ from what is removed so far: front to back, the output projection of the last kept sublayer before each removed
run is solved so that the stream after it is the dense stream after the run (as in `refit.py`, with one ridge). Each
half of the text goes through projections that were fitted to the other half, else the search would choose what is
learnt by heart. Nothing of it is kept: what the search finds is repaired anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from depthcut.calibration import Samples
from depthcut.distributed import ALONE, Ranks
from depthcut.importance.ablation import DEFAULT_MEMORY_BUDGET, Ablation, Key, Removed
from depthcut.journal import Journal
from depthcut.model.architectures import Architecture, Branch
from depthcut.model.quantisation import quantisation
from depthcut.model.stream import DecoderStream
from depthcut.recovery.moments import Moments
from depthcut.recovery.projections import calls_of, gain_after, lacking, matrix_of, reach, replace_matrix
from depthcut.types import InputError, Unit

FOLDS = 2
"""Batch i belongs to part i modulo this of the text, and a part is repaired by what the others taught."""

RIDGE = 0.5
"""About what held-out tokens choose for the projection before a removed run."""


def check_search_recover(architecture: Architecture, config: PreTrainedConfig) -> None:
    """Raises InputError where a search cannot repair what it tries; needs no weights."""
    stored = quantisation(config)
    if stored is not None:
        raise InputError(
            f"a search cannot make {stored} weights anew for what it tries; leave out --search-recover, or begin from "
            "the unquantised model"
        )
    if architecture.parallel:
        raise InputError(
            "in this family both parts of a block read the same stream, and a search does not repair those; leave out "
            "--search-recover: --recover refit repairs what it finds"
        )


Weights = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Repaired:
    """A set that was run over the whole text.

    Attributes:
        weights: new matrices by position of the sublayer whose output projection has them, one for each part of the
            text.
        streams: (sequences, length, hidden) before the final norm, batch by batch.
        runs: sublayers that each sequence went through.
    """

    removed: Removed
    weights: dict[int, Weights]
    streams: list[torch.Tensor]
    runs: int


class RepairedAblation(Ablation):
    """What the output loses without a set of units once the projections before them are solved anew.

    A set costs what it costs without repair, two more sublayers and the moments of one for each removed run. Text of
    one batch is not repaired: there is nothing else to learn from.

    A repair is fitted to the whole text, so that several processes divide sets, not batches; the set that streams are
    kept for is repaired by all of them.
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
        super().__init__(
            stream,
            samples,
            objective,
            journal=journal,
            batch_size=batch_size,
            memory_budget=memory_budget // 2,
            ranks=ranks,
        )
        self._dense = Ablation(stream, samples, objective, batch_size=batch_size, memory_budget=memory_budget // 2)
        self._base_weights: dict[int, Weights] = {}
        self._latest: _Repaired | None = None

    def rebase(self, removed: Collection[Unit]) -> None:
        removed = frozenset(removed)
        if removed != self.base:
            weights = self._repair(removed).weights
            super().rebase(removed)
            self._base_weights = weights

    def ahead(self, keys: Iterable[Key]) -> None:
        # Making a set the base repairs it, which every process would do for all of them.
        with torch.no_grad():
            self._find_all(list(keys))

    def _in_order(self, sets: Sequence[Removed], batches: Sequence[int]) -> list[Key]:
        # One set after the other, not one batch: a set is repaired once.
        return [(removed, index) for removed in sorted(dict.fromkeys(sets), key=self._start) for index in batches]

    def _share(self, missing: Sequence[Key]) -> list[Key]:
        places = {removed: place for place, removed in enumerate(dict.fromkeys(removed for removed, _ in missing))}
        # Where sets come one by one, they still go round.
        turn = len(self._memo) // self.num_batches
        ranks = self._ranks
        return [(removed, index) for removed, index in missing if (turn + places[removed]) % ranks.count == ranks.index]

    def _prepared(self) -> list[int]:
        return list(range(len(self._rows)))

    def _find_abreast(self, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        # A repair needs the whole text in one place of the model.
        return {}

    def entering(self, index: int, position: int) -> torch.Tensor:
        with self._replaced(self._base_weights, index % FOLDS):
            return super().entering(index, position)

    def _start(self, removed: Removed) -> int:
        """The last sublayer that is kept either way before the first difference: what it writes may differ."""
        first = super()._start(removed)
        if first == len(self.stream.units):
            return first
        gone = removed | self.base
        return max((place for place in range(first) if self.stream.units[place] not in gone), default=0)

    def _run(self, removed: Removed, index: int) -> tuple[torch.Tensor, int]:
        found = self._repair(removed)
        return found.streams[index], found.runs * len(found.streams[index])

    @torch.no_grad()
    def _repair(self, removed: Removed) -> _Repaired:
        """Runs a set from where it leaves the base, each projection before a removed run solved on the way."""
        if self._latest is not None and self._latest.removed == removed:
            return self._latest
        units, start = self.stream.units, self._start(removed)
        weights = {place: weight for place, weight in self._base_weights.items() if place < start}
        streams = [self.entering(index, start) for index in range(self.num_batches)]
        position, num_solved = start, 0
        for last, stop in self._runs(removed, start):
            streams = self._advance(streams, removed, position, last)
            weight = self._solve(streams, removed, last, stop)
            if weight is not None:
                weights[last] = weight
                num_solved += 1
            streams = self._advance(streams, removed, last, stop, weights)
            position = stop
        streams = self._advance(streams, removed, position, len(units))
        runs = num_solved + sum(unit not in removed for unit in units[start:])
        self._latest = _Repaired(removed, weights, streams, runs)
        return self._latest

    def _runs(self, removed: Removed, start: int) -> Iterator[tuple[int, int]]:
        """The last kept sublayer before each removed run, from a position on, and where the run ends."""
        units = self.stream.units
        for place in range(start, len(units) - 1):
            if units[place] not in removed and units[place + 1] in removed:
                kept = (stop for stop in range(place + 2, len(units)) if units[stop] not in removed)
                yield place, next(kept, len(units))

    def _advance(
        self,
        streams: Sequence[torch.Tensor],
        removed: Removed,
        start: int,
        stop: int,
        weights: Mapping[int, Weights] = MappingProxyType({}),
    ) -> list[torch.Tensor]:
        advanced = []
        for index, (kept, stream) in enumerate(zip(self._batches.values(), streams, strict=True)):
            with self._replaced(weights, index % FOLDS):
                advanced.append(self.stream.run(kept.batch, removed, start=start, stop=stop, stream=stream))
        return advanced

    def _solve(self, streams: Sequence[torch.Tensor], removed: Removed, place: int, stop: int) -> Weights | None:
        """The new matrices of a sublayer's output projection; None where the sublayer has none, or the text one batch.

        Args:
            streams: entering the sublayer.
            stop: where the removed run after it ends.
        """
        block, branch = self._branch(place)
        if not branch.projection or len(streams) < FOLDS:
            return None
        projection: nn.Module = attrgetter(branch.projection)(block)
        matrix = matrix_of(projection)
        gain = gain_after(block, branch, streams[0].shape[-1])
        moments = Moments(matrix.shape[1], len(gain), matrix.dtype, num_parts=FOLDS)
        for index, (kept, entering) in enumerate(zip(self._batches.values(), streams, strict=True)):
            with calls_of([projection], entering.shape[:-1]) as calls:
                after = self.stream.run(kept.batch, removed, start=place, stop=place + 1, stream=entering)
            inputs, written = calls[0]
            inputs = inputs * reach(after - entering, written, gain)
            targets, weights = lacking(after, self._dense.entering(index, stop), gain)
            tokens = kept.batch.token_mask
            moments.add(inputs[tokens], targets[tokens], weights[tokens], index % FOLDS)
        return tuple(matrix + moments.fit(RIDGE, without=part).to(matrix) for part in range(FOLDS))

    def _branch(self, place: int) -> tuple[nn.Module, Branch]:
        unit = self.stream.units[place]
        block = self.stream.blocks[unit.layer]
        return block, self.stream.architecture.branches[unit.kind].of(block)

    @contextmanager
    def _replaced(self, weights: Mapping[int, Weights], part: int) -> Iterator[None]:
        """While open, output projections have the matrices for a part of the text."""
        modules = {}
        for place in weights:
            block, branch = self._branch(place)
            modules[place] = attrgetter(branch.projection)(block)
        before = {place: module.weight for place, module in modules.items()}
        try:
            for place, module in modules.items():
                replace_matrix(module, weights[place][part])
            yield
        finally:
            for place, module in modules.items():
                module.weight = before[place]
