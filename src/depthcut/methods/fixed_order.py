"""Orders that look at no data: UIDL's simple heuristic and ShortGPT's controls. Any metric has to beat them."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from depthcut.methods.problem import SEARCHES, Problem
from depthcut.types import Cost, Removal, Step, UnitChoice

RemovalOrder = Literal["deepest-first", "sequential", "reverse", "random"]


@dataclass(frozen=True)
class FixedOrder:
    """Removes in an order known beforehand.

    Attributes:
        order: `deepest-first` from the last but one block upwards, the last block stays (UIDL, section 3.2);
            `sequential` the first block first; `reverse` the last block first; `random` seeded.
    """

    order: RemovalOrder
    needs: ClassVar[Literal["configuration"]] = "configuration"
    preferred_unit: ClassVar[UnitChoice] = "block"
    objective: ClassVar[None] = None

    def check(self, problem: Problem) -> None:
        """Takes any unit and budget."""

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        return Cost()

    def path(self, problem: Problem) -> list[Step]:
        candidates = problem.candidates()
        if problem.unit == "pair":
            # Pairs overlap: those of a block are the ones that can all go.
            candidates = [pair for pair in candidates if pair[0].layer == pair[1].layer]
        if self.order == "random":
            random.Random(problem.seed).shuffle(candidates)
        elif self.order != "sequential":
            candidates.reverse()
        if self.order == "deepest-first":
            candidates = [removal for removal in candidates if removal[0].layer != problem.num_blocks - 1]
        return [Step(remove=removal) for removal in problem.in_turn(self._leaving_something(candidates, problem))]

    @staticmethod
    def _leaving_something(candidates: list[Removal], problem: Problem) -> list[Removal]:
        removes_all = sum(len(removal) for removal in candidates) == len(problem.units)
        return candidates[:-1] if removes_all else candidates


_ORDERS: tuple[tuple[RemovalOrder, str, str], ...] = (
    ("deepest-first", "the deepest blocks but the last", "UIDL, arXiv 2403.17887"),
    ("sequential", "the first blocks first (a control)", "ShortGPT, arXiv 2403.03853"),
    ("reverse", "the last blocks first (a control)", "ShortGPT, arXiv 2403.03853"),
    ("random", "in random order (a control)", "ShortGPT, arXiv 2403.03853"),
)
for _order, _summary, _source in _ORDERS:
    SEARCHES.register(_order, functools.partial(FixedOrder, _order), summary=_summary, source=_source)
