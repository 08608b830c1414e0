"""Removes a window of neighbouring blocks: the one whose ends are the closest in angle (UIDL, arXiv 2403.17887,
section 3.2), or the one without which the output loses least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from depthcut.ablation.objectives import find_objective
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.types import Cost, InputError, Removal, Step, UnitChoice


@dataclass(frozen=True)
class Contiguous:
    """The window l .. l + n - 1 with the least angular distance d(l, n) for the n that the budget asks for.

    The windows of different n are not nested, so the path is one step; `scores.json` holds d(l, n) for every other n.
    """

    needs: ClassVar[Literal["scores"]] = "scores"
    preferred_unit: ClassVar[UnitChoice] = "block"
    objective: ClassVar[str] = "angular distance between the window's ends"

    def check(self, problem: Problem) -> None:
        """Takes whole blocks only."""
        _check(problem, "uidl")

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        return Cost()

    def path(self, problem: Problem) -> list[Step]:
        assert problem.scores is not None
        angular = problem.scores.angular
        windows = _windows(problem)
        distances = [angular[window[0].layer][_num_blocks(window) - 1] if window else 0.0 for window in windows]
        return _best(windows, distances)


@dataclass(frozen=True)
class Window:
    """The window of as many blocks as the budget asks for without which the objective is least: every start is tried.

    One step, as for `Contiguous`.

    Attributes:
        objective: one of `OBJECTIVES`, compared with the dense model on the calibration text.
    """

    objective: str = "kl"
    needs: ClassVar[Literal["objective"]] = "objective"
    preferred_unit: ClassVar[UnitChoice] = "block"

    def __post_init__(self) -> None:
        find_objective(self.objective)

    def check(self, problem: Problem) -> None:
        """Takes whole blocks only."""
        _check(problem, "window")

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        windows = _windows(problem)
        units, size = len(problem.units), max(map(len, windows))
        # Two whole passes keep streams; of what is not removed, on average the half after the window has to be run.
        evaluations = num_sequences * (2 * units + len(windows) * (units - size) // 2)
        return Cost(unit_evaluations=evaluations, candidate_evaluations=len(windows))

    def path(self, problem: Problem) -> list[Step]:
        assert problem.ablation is not None
        windows = _windows(problem)
        problem.ablation.rebase([])
        return _best(windows, problem.ablation.evaluate([frozenset(window) for window in windows]))


def _check(problem: Problem, method: str) -> None:
    if problem.unit != "block":
        raise InputError(f"{method} removes whole blocks, not {problem.unit} units; leave --unit out or give block")
    if problem.budget.kind == "increase":
        raise InputError(f"{method} has no path that a ceiling could end; give --remove or --budget")


def _windows(problem: Problem) -> list[Removal]:
    """Every window of unprotected blocks of the least length at which one meets the budget, and that does so."""
    for num_removed in range(problem.num_blocks):
        found: list[Removal] = []
        for start in range(problem.num_blocks - num_removed + 1 if num_removed else 1):
            layers = range(start, start + num_removed)
            units = tuple(unit for unit in problem.units if unit.layer in layers)
            if not problem.protected.intersection(units) and problem.is_met(units) and problem.allows(units):
                found.append(units)
        if found:
            return found
    raise InputError(f"no window of unprotected blocks meets the budget ({problem.budget}); ask for less")


def _num_blocks(window: Removal) -> int:
    return len({unit.layer for unit in window})


def _best(windows: Sequence[Removal], values: Sequence[float]) -> list[Step]:
    """The window of the least value as one step, the first of equals; no step where nothing has to go."""
    value, place = min((value, place) for place, value in enumerate(values))
    return [Step(remove=windows[place], objective=value)] if windows[place] else []


SEARCHES.register(
    "uidl", Contiguous, summary="the contiguous blocks with the least angular distance", source="UIDL, arXiv 2403.17887"
)
SEARCHES.register("window", Window, summary="the contiguous blocks without which the output loses least", source="ours")
