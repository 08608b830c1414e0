"""Removes the window of blocks whose ends are the closest in angle (UIDL, arXiv 2403.17887, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from depthcut.search.problem import SEARCHES, Problem
from depthcut.types import InputError, Step, UnitChoice


@dataclass(frozen=True)
class Contiguous:
    """The window l .. l + n - 1 with the least angular distance d(l, n) for the n that the budget asks for.

    The windows of different n are not nested, so the path is one step; `scores.json` holds d(l, n) for every other n.
    """

    needs: ClassVar[Literal["scores"]] = "scores"
    preferred_unit: ClassVar[UnitChoice] = "block"
    objective: ClassVar[str] = "angular distance between the window's ends"

    def path(self, problem: Problem) -> list[Step]:
        if problem.unit != "block":
            raise InputError(f"uidl removes whole blocks, not {problem.unit} units; leave --unit out or give block")
        assert problem.scores is not None
        for num_removed in range(problem.num_blocks):
            step = self._window(problem, num_removed)
            if step is not None and problem.is_met(step.remove):
                return [step] if num_removed else []
        raise InputError(f"no window of unprotected blocks meets the budget ({problem.budget}); ask for less")

    def _window(self, problem: Problem, num_removed: int) -> Step | None:
        """The best window of that many blocks, None where every one holds a protected block."""
        if num_removed == 0:
            return Step(remove=())
        assert problem.scores is not None
        best: Step | None = None
        for start, row in enumerate(problem.scores.angular):
            layers = range(start, start + num_removed)
            units = tuple(unit for unit in problem.units if unit.layer in layers)
            if num_removed > len(row) or problem.protected.intersection(units):
                continue
            if best is None or best.objective is None or row[num_removed - 1] < best.objective:
                best = Step(remove=units, objective=row[num_removed - 1])
        return best


SEARCHES.register(
    "uidl", Contiguous, summary="the contiguous blocks with the least angular distance", source="UIDL, arXiv 2403.17887"
)
