"""Ranks units by Shapley importance and removes the least important first (Deeper Look, arXiv 2407.16286)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.ablation.objectives import asks_questions, find_objective
from depthcut.importance.shapley import (
    DEFAULT_MAX_FORWARDS,
    Importance,
    ahead_of,
    leave_one_out,
    permutation,
    random_subsets,
    require_enough_forwards,
    value_of,
    values_of_batches,
)
from depthcut.methods.one_shot import rank
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.types import Cost, InputError, Removal, Step, UnitChoice

Estimator = Literal["permutation", "random-subsets", "leave-one-out"]
_METRICS: dict[Estimator, str] = {
    "permutation": "shapley",
    "random-subsets": "shapley-random-subsets",
    "leave-one-out": "leave-one-out",
}


@dataclass(frozen=True)
class Shapley:
    """One-shot ranking by how much the objective rises with a unit gone, on average over what else is gone.

    Protected units are no players: they are never gone. The objective of every step is evaluated after the ranking. The
    importances with their standard errors go into `scores.json`.

    Attributes:
        objective: one of `OBJECTIVES`, with settings. The default is bounded: over sets of every size, kl has
            single rises of tens of nats that drown what other units do (SmolLM2-135M, 230 forward passes: standard
            errors as large as the importances).
        estimator: how the average is estimated, see `importance/shapley.py`.
        max_forwards: passes over the calibration text that the estimate may take, by default 500; for
            `random-subsets` the number of sub-networks that every batch of the text has, by default `num_subsets`.
        num_subsets: what Deeper Look's code takes.
        keep_fraction: of the units in a random sub-network; by default what their code takes, 0.9 on a task, else 0.5.
    """

    objective: str = "js"
    estimator: Estimator = "permutation"
    max_forwards: int | None = None
    num_subsets: int = 10
    keep_fraction: float | None = None
    needs: ClassVar[Literal["objective"]] = "objective"
    preferred_unit: ClassVar[UnitChoice] = "block"

    def __post_init__(self) -> None:
        find_objective(self.objective)

    def check(self, problem: Problem) -> None:
        """Takes every unit but pairs, and budgets in forward passes that give standard errors."""
        if problem.unit == "pair":
            raise InputError("pairs overlap, so they have no Shapley values; use --unit block, attn, ffn or sublayer")
        if self.estimator == "permutation":
            require_enough_forwards(len(problem.candidates()), self.max_forwards or DEFAULT_MAX_FORWARDS)

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        players, units = len(problem.candidates()), len(problem.units)
        if self.estimator == "leave-one-out":
            forwards, share = players, 0.5
        elif self.estimator == "permutation":
            # Half a pass for what stays behind the unit that goes, and half of that is gone already.
            forwards, share = self.max_forwards or DEFAULT_MAX_FORWARDS, 0.25
        else:
            forwards, share = self.max_forwards or self.num_subsets, self._keep_fraction
        return Cost(unit_evaluations=int(num_sequences * forwards * units * share), candidate_evaluations=forwards)

    def path(self, problem: Problem) -> list[Step]:
        assert problem.ablation is not None
        players = problem.candidates()
        removes_all = sum(len(player) for player in players) == len(problem.units)
        unit: Literal["block", "sublayer"] = "block" if problem.unit == "block" else "sublayer"
        found = self.importance(players, problem.ablation, problem.seed)
        measure = f"{self.objective}, {problem.ablation.objective.measure}"
        scores = found.scores(_METRICS[self.estimator], unit, measure)
        problem.keep_scores(scores)
        ranked = [player for player, _ in rank(scores.values, players)]
        value = value_of(problem.ablation)
        leaving = problem.in_turn(ranked[:-1] if removes_all else ranked)
        gone: list[Removed] = []
        for player in leaving:
            gone.append(frozenset(player).union(*gone[-1:]))
        ahead_of(problem.ablation)(gone)
        return [Step(remove=player, objective=value(removed)) for player, removed in zip(leaving, gone, strict=True)]

    def importance(self, players: Sequence[Removal], ablation: Ablation, seed: int = 0) -> Importance:
        """The estimate for these players; costs forward passes, fewer where the ablation's journal knows sets."""
        if self.estimator == "leave-one-out":
            return leave_one_out(players, value_of(ablation), self.max_forwards, ahead_of(ablation))
        if self.estimator == "permutation":
            max_forwards = self.max_forwards or DEFAULT_MAX_FORWARDS
            return permutation(
                players, value_of(ablation), max_forwards=max_forwards, seed=seed, ahead=ahead_of(ablation)
            )
        return random_subsets(
            players,
            values_of_batches(ablation),
            num_subsets=self.max_forwards or self.num_subsets,
            keep_fraction=self._keep_fraction,
            seed=seed,
            ahead=ablation.ahead,
        )

    @property
    def _keep_fraction(self) -> float:
        return self.keep_fraction or (0.9 if asks_questions(self.objective) else 0.5)


SEARCHES.register(
    "shapley", Shapley, summary="least Shapley value first (permutation sampling with errors), one shot", source="ours"
)
SEARCHES.register(
    "deeper-look",
    partial(Shapley, objective="loss", estimator="random-subsets"),
    summary="least rise of the loss over random sub-networks first, one shot",
    source="Deeper Look, arXiv 2407.16286",
)
