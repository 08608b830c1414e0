"""Evolutionary search over sets that meet the budget (EvoPress, arXiv 2410.14649).

(1 + lambda): one parent, some offspring a generation, each the parent with a removed group exchanged for a kept one or
a few of them. Offspring are judged on a little text first and the survivors on more; on the whole text the best of them
takes the parent's place if it is better, so the objective never rises. The text of the early stages is drawn anew each
generation, and each stage's text contains the one before.

The paper's search has no path: here the found set is ordered by what each of its groups does alone, least first, and
the objective after each step is evaluated. A smaller plan cut from it is that ranking's, not the search's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.ablation.objectives import find_objective
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.types import Cost, InputError, Removal, Step, UnitChoice

Groups = frozenset[Removal]


@dataclass(frozen=True)
class Evolutionary:
    """Evolution of one set of removed groups.

    Attributes:
        objective: one of `OBJECTIVES`, compared with the dense model on the calibration text.
        generations: rounds of offspring and survivors.
        offspring: of each generation.
        num_initial: random sets of which the first parent is the best.
        max_exchanges: most groups exchanged at once; one is the likeliest, as in the paper's code.
        stages: by stage before the last, the share of the calibration text and how many offspring survive it.
    """

    objective: str = "kl"
    generations: int = 50
    offspring: int = 16
    num_initial: int = 16
    max_exchanges: int = 3
    stages: tuple[tuple[float, int], ...] = ((0.125, 4), (0.375, 2))
    needs: ClassVar[Literal["objective"]] = "objective"
    preferred_unit: ClassVar[UnitChoice] = "block"

    def __post_init__(self) -> None:
        find_objective(self.objective)

    def check(self, problem: Problem) -> None:
        """Takes every unit but pairs, and budgets that give a size."""
        if problem.unit == "pair" or problem.budget.kind == "increase":
            raise InputError(
                "evopress exchanges groups of a set whose size the budget gives; use --unit block, attn, ffn or "
                "sublayer, and --remove or --budget"
            )

        for removed in map(frozenset, problem.candidates()):
            if not problem.allows(removed):
                raise InputError(
                    "evopress exchanges groups one for another, and this model cannot be written without "
                    f"{', '.join(map(str, sorted(removed)))} alone; protect that, or use greedy, shortgpt or window"
                )

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        passes, survivors = 0.0, self.offspring
        for share, survive in self.stages:
            passes += survivors * share
            survivors = survive
        kept = len(problem.units) * (1 - min(1, problem.likely_steps / max(1, problem.num_removable)))
        passes += survivors
        return Cost(
            unit_evaluations=int(num_sequences * kept * (self.num_initial + self.generations * passes / 2)),
            candidate_evaluations=int(self.num_initial + self.generations * passes),
        )

    def path(self, problem: Problem) -> list[Step]:
        assert problem.ablation is not None
        return _Evolution(self, problem, problem.ablation).path()


class _Evolution:
    """The state of one search.

    Attributes:
        parent: the removed groups of the best set so far.
        value: its objective on the whole text.
    """

    def __init__(self, settings: Evolutionary, problem: Problem, ablation: Ablation) -> None:
        self.settings, self.problem, self.ablation = settings, problem, ablation
        self._generator = random.Random(problem.seed)
        self._candidates = problem.candidates()
        self._value_sizes = ablation.batch_sizes
        initial = list(dict.fromkeys(self._filled(frozenset()) for _ in range(settings.num_initial)))
        self.parent, self.value = self._best(initial)

    def path(self) -> list[Step]:
        steps_told = 0
        for generation in range(1, self.settings.generations + 1):
            self._generation()
            steps_due = generation * self.problem.steps_at_most // self.settings.generations
            self.problem.advance(steps_due - steps_told)
            steps_told = steps_due
        return self._in_order()

    def _generation(self) -> None:
        offspring = dict.fromkeys(self._mutated() for _ in range(self.settings.offspring))
        survivors = [groups for groups in offspring if groups != self.parent]
        if not survivors:
            return
        self.ablation.rebase(_units(self.parent))
        batches = list(range(self.ablation.num_batches))
        self._generator.shuffle(batches)
        for share, num_surviving in self.settings.stages:
            count = max(1, round(share * len(batches)))
            values = self._on_batches(survivors, sorted(batches[:count]))
            ranked = sorted(range(len(survivors)), key=values.__getitem__)
            survivors = [survivors[place] for place in ranked[:num_surviving]]
        best, value = self._best(survivors)
        if value < self.value:
            self.parent, self.value = best, value

    def _best(self, sets: Sequence[Groups]) -> tuple[Groups, float]:
        """On the whole text; the first of equals."""
        values = self.ablation.evaluate([_units(groups) for groups in sets])
        place = min(range(len(sets)), key=values.__getitem__)
        return sets[place], values[place]

    def _on_batches(self, sets: Sequence[Groups], batches: Sequence[int]) -> list[float]:
        """The objective on part of the text, each sequence weighed as on the whole; for comparison only."""
        ends = torch.tensor(self._value_sizes).cumsum(dim=0).tolist()
        weights = torch.cat([self.ablation.weights[ends[i] - self._value_sizes[i] : ends[i]] for i in batches])
        values = self.ablation.per_sequence([_units(groups) for groups in sets], batches)
        return (values * weights).sum(dim=-1).tolist()

    def _mutated(self) -> Groups:
        """The parent with a few groups exchanged: mostly one, the lesser of two draws."""
        removed = sorted(self.parent)
        kept = [group for group in self._candidates if group not in self.parent]
        draws = [self._generator.randint(1, self.settings.max_exchanges) for _ in range(2)]
        count = min(*draws, len(removed), len(kept))
        leaving = self._generator.sample(removed, count)
        entering = self._generator.sample(kept, count)
        return self._filled(self.parent.difference(leaving).union(entering))

    def _filled(self, groups: Groups) -> Groups:
        """Adds random groups until the budget is met, then puts back what it does not need.

        With groups of one size that changes nothing but an empty set; an attention exchanged for an FFN may have to
        bring others along, or may spare them.
        """
        rest = [group for group in self._candidates if group not in groups]
        self._generator.shuffle(rest)
        while not self.problem.is_met(_units(groups)):
            if not rest:
                raise InputError(
                    f"cannot {self.problem.budget} by {self.problem.unit} units: the unprotected ones are too few; "
                    "ask for less"
                )
            groups = groups.union([rest.pop()])
        for group in self._generator.sample(sorted(groups), len(groups)):
            if self.problem.is_met(_units(groups.difference([group]))):
                groups = groups.difference([group])
        return groups

    def _in_order(self) -> list[Step]:
        groups = sorted(self.parent)
        self.ablation.rebase([])
        alone = dict(zip(groups, self.ablation.evaluate([frozenset(group) for group in groups]), strict=True))
        groups.sort(key=alone.__getitem__)
        steps: list[Step] = []
        for count, group in enumerate(groups, start=1):
            removed = _units(groups[:count])
            self.ablation.rebase(removed)
            steps.append(Step(remove=group, objective=self.ablation(removed)))
        return steps


def _units(groups: Iterable[Removal]) -> Removed:
    return frozenset(unit for group in groups for unit in group)


SEARCHES.register(
    "evopress", Evolutionary, summary="evolution of the removed set by KL to dense", source="EvoPress, arXiv 2410.14649"
)
