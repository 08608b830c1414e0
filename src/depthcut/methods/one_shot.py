"""Ranks units by a metric and removes the least important first (ShortGPT, arXiv 2403.03853, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from depthcut.ablation.objectives import OBJECTIVES
from depthcut.importance import BLOCK_INFLUENCE, METRICS, metric_name
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.registry import unknown_name
from depthcut.types import Cost, InputError, Removal, Step, UnitChoice


def rank(values: Mapping[str, float], candidates: list[Removal]) -> list[tuple[Removal, float]]:
    """Candidates by ascending importance; of equals the deeper one first, since later blocks are the more redundant.

    Args:
        values: by unit (`17.attn`) or by block (`17`).
        candidates: units, or all the units of a block.
    """

    def value(removal: Removal) -> float:
        name = str(removal[0]) if len(removal) == 1 and str(removal[0]) in values else str(removal[0].layer)
        return values[name]

    ranked = sorted(candidates, key=lambda removal: (value(removal), -removal[0].layer, removal[0].kind))
    return [(removal, value(removal)) for removal in ranked]


@dataclass(frozen=True)
class OneShot:
    """One-shot ranking; blocks need not be neighbours.

    Attributes:
        metric: one of `METRICS`, or an objective: then what the output loses without the unit alone (leave one out).
    """

    metric: str = BLOCK_INFLUENCE
    preferred_unit: ClassVar[UnitChoice] = "block"

    def __post_init__(self) -> None:
        if self.metric in METRICS:
            METRICS.parse(self.metric)
        elif self.metric in OBJECTIVES:
            OBJECTIVES.parse(self.metric)
        else:
            known = [entry.name for registry in (METRICS, OBJECTIVES) for entry in registry]
            raise InputError(unknown_name("metric", self.metric, known))

    @property
    def needs(self) -> Literal["scores", "objective"]:
        return "scores" if self.metric in METRICS else "objective"

    @property
    def objective(self) -> str:
        return self.metric

    def check(self, problem: Problem) -> None:
        """Takes every unit but pairs."""
        if problem.unit == "pair":
            raise InputError("a one-shot ranking has no scores for pairs; use --unit block, attn, ffn or sublayer")

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        if self.needs != "objective":
            return Cost()
        candidates, units = len(problem.candidates()), len(problem.units)
        # Two whole passes keep streams, and each candidate is run from where it leaves them.
        evaluations = num_sequences * (2 * units + candidates * units // 2)
        return Cost(unit_evaluations=evaluations, candidate_evaluations=candidates)

    def path(self, problem: Problem) -> list[Step]:
        candidates = problem.candidates()
        removes_all = sum(len(removal) for removal in candidates) == len(problem.units)
        ranked = dict(rank(self._values(problem, candidates), candidates))
        leaving = problem.in_turn(list(ranked)[:-1] if removes_all else list(ranked))
        return [Step(remove=removal, objective=ranked[removal]) for removal in leaving]

    def _values(self, problem: Problem, candidates: list[Removal]) -> Mapping[str, float]:
        """Importance by unit or block: a static score, or the objective without the unit (leave one out)."""
        unit: Literal["block", "sublayer"] = "block" if problem.unit == "block" else "sublayer"
        if self.needs == "scores":
            assert problem.scores is not None
            return problem.scores.find(metric_name(self.metric, unit), unit).values
        assert problem.ablation is not None
        values = problem.ablation.evaluate([frozenset(removal) for removal in candidates])
        names = [str(removal[0].layer if unit == "block" else removal[0]) for removal in candidates]
        return dict(zip(names, values, strict=True))


SEARCHES.register(
    "shortgpt", OneShot, summary="least Block Influence first, one shot", source="ShortGPT, arXiv 2403.03853"
)
SEARCHES.register(
    "one-shot", OneShot, summary="least of any metric or objective (--metric) first, one shot", source="ours"
)
