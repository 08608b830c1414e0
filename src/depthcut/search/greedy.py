"""Greedy removal by what the output loses: each step removes the candidate that does the least damage together with all
that is already gone (FinerCut, arXiv 2405.18218; SLEB, arXiv 2402.09025; BlockPruner, arXiv 2406.10594).

`exhaustive` evaluates every candidate of every round on the whole calibration text. `lazy` (ours) finds nearly the same
path for a small share of that. It keeps an estimate for every candidate and each round

1. looks anew, on a pilot text of excerpts, at the best estimates, at the neighbours of what was removed last, whose
   cost can fall once their neighbour is gone, and at those not looked at for longest;
2. corrects what the pilot says by how far off it was when the candidate was last evaluated in full;
3. evaluates the best of them in full, until the next estimate is worse than what was found.

Steps can be judged by damage per parameter or per KV byte saved, when that is what the budget counts. `swap` then
exchanges removed against kept units while that lowers the objective. Measured in `benchmarks/search_cost.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.ablation.objectives import find_objective
from depthcut.search.problem import SEARCHES, Problem
from depthcut.types import Cost, Removal, Step, UnitChoice

IMPROVEMENT = 1e-4
"""Share of the objective by which an exchange must lower it to be made: less is the noise of float32."""


@dataclass(frozen=True)
class Greedy:
    """Greedy search over whatever the problem's unit is.

    Attributes:
        objective: one of `OBJECTIVES`, compared with the dense model on the calibration text.
        strategy: `lazy` or `exhaustive`.
        swap: refine the final set by exchanges.
        pilot_fraction: share of the calibration tokens in the pilot text.
        num_looks: best estimates looked at anew each round.
        num_neighbours: units on either side of the last removal that are looked at anew.
        num_oldest: candidates looked at because it is longest ago.
        num_full: candidates evaluated in full each round, at least and at most.
        tolerance: how much worse than the best full evaluation an estimate may be and still be evaluated in full.
        joint: where single sublayers may go and the budget counts parameters, take pairs while it asks for that many;
            exchanges then part them.
        effort: unit evaluations that exchanges may bring the search to, as a share of what the naive loop of full
            forward passes costs.
        protected_fraction: blocks at the start that stay until that share of the sublayers (and one) is gone:
            FinerCut's protection, 0.4 in its instructions.
        preferred_unit: what it removes where the user does not say.
    """

    objective: str = "kl"
    strategy: Literal["lazy", "exhaustive"] = "lazy"
    swap: bool = True
    pilot_fraction: float = 0.375
    num_looks: int = 6
    num_neighbours: int = 2
    num_oldest: int = 1
    num_full: tuple[int, int] = (2, 4)
    tolerance: float = 0.05
    joint: bool = True
    effort: float = 0.08
    preferred_unit: UnitChoice = "pair"
    protected_fraction: float = 0.0
    needs: ClassVar[Literal["objective"]] = "objective"

    def __post_init__(self) -> None:
        find_objective(self.objective)

    def check(self, problem: Problem) -> None:
        """Takes any unit and budget."""

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        candidates, units = len(problem.candidates()), len(problem.units)
        size = len(problem.candidates()[0])
        rounds = range(min(problem.likely_steps, candidates))
        kept = [units - size * i for i in rounds]
        naive = sum((candidates - i) * (count - size) for i, count in zip(rounds, kept, strict=True))
        # Two whole passes keep streams. Later rounds walk on from what was removed, candidates from where they leave.
        walked = 2 * units + sum(kept[1:]) / 2
        if self.strategy == "exhaustive":
            evaluated = 1.0 + sum(candidates - i for i in rounds)
            passes = walked + naive / 2
        else:
            anew = min(candidates, self.num_looks + self.num_neighbours + self.num_oldest)
            looks = candidates + (len(kept) - 1) * anew
            # Few rounds need more than the least.
            tails = len(kept) * self.num_full[0] + self.pilot_fraction * looks
            # What candidates are compared with costs a vocabulary projection.
            evaluated = 1 + tails + self.pilot_fraction * len(kept)
            passes = (1 + self.pilot_fraction) * walked + tails * sum(kept) / len(kept) / 2
            if self.swap and problem.budget.kind != "increase":
                # Exchanges go on until the effort is spent.
                evaluated *= max(1, self.effort * naive / passes)
                passes = max(passes, self.effort * naive)
        return Cost(unit_evaluations=int(num_sequences * passes), candidate_evaluations=int(evaluated))

    def path(self, problem: Problem) -> list[Step]:
        assert problem.ablation is not None
        rounds = _Rounds(self, problem, problem.ablation)
        while not problem.is_met(rounds.removed) and rounds.candidates(rounds.removed):
            rounds.step()
            problem.advance(1)
        # Under a ceiling the last step is the one too many, so there is no set to refine.
        if self.swap and rounds.groups and problem.budget.kind != "increase":
            rounds.exchange_while_it_pays()
        return [Step(remove=group, objective=value) for group, value in zip(rounds.groups, rounds.values, strict=True)]


@dataclass
class _Estimate:
    """The estimated increase of the objective if a candidate is removed next.

    Attributes:
        looked: the round of the last look.
        in_full: increase at the last full evaluation, and what the pilot alone said then; None before the first.
    """

    increase: float
    looked: int
    in_full: tuple[float, float] | None = None


@dataclass
class _Rounds:
    """The state of one search.

    Attributes:
        groups: what was removed, in order.
        values: the objective after each.
    """

    settings: Greedy
    problem: Problem
    ablation: Ablation
    groups: list[Removal] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    estimates: dict[Removal, _Estimate] = field(default_factory=dict)
    naive_evaluations: int = 0

    def __post_init__(self) -> None:
        self._positions = {unit: position for position, unit in enumerate(self.problem.units)}
        lazy = self.settings.strategy == "lazy"
        # What the first round will need whatever the dense value is, so that processes can divide it at once.
        first = [] if lazy or self.problem.is_met(frozenset()) else self.candidates(frozenset())
        self.dense_value = self.ablation.evaluate([frozenset(), *map(frozenset, first)])[0]
        self.pilot = self.ablation.on_excerpts(self.settings.pilot_fraction) if lazy else self.ablation

    @property
    def removed(self) -> Removed:
        return frozenset(unit for group in self.groups for unit in group)

    @property
    def value(self) -> float:
        """The objective of what is removed so far."""
        return self.values[-1] if self.values else self.dense_value

    def candidates(self, removed: Removed) -> list[Removal]:
        """What the next step may remove."""
        joint = self.problem.joint_candidates(removed) if self.settings.joint else []
        candidates = joint or self.problem.candidates(removed)
        share = self.settings.protected_fraction
        if len(removed) > int(share * len(self.problem.units)):
            return candidates
        return [group for group in candidates if group[0].layer >= share * self.problem.num_blocks]

    def step(self) -> None:
        """Removes one more group."""
        removed = self.removed
        candidates = self.candidates(removed)
        self._count_naive(removed, candidates)
        self._rebase(removed)
        found = self._exhaustive(candidates) if self.settings.strategy == "exhaustive" else self._lazy(candidates)
        best = min(
            found, key=lambda group: (found[group] / self.problem.saving(group, removed), self._positions[group[0]])
        )
        self.groups.append(best)
        self.values.append(self.ablation(self.removed))

    def _rebase(self, removed: Removed) -> None:
        for text in (self.ablation, self.pilot):
            text.rebase(removed)

    def _count_naive(self, removed: Removed, candidates: Sequence[Removal]) -> None:
        sequences = len(self.ablation.samples.input_ids)
        kept = len(self.problem.units) - len(removed)
        self.naive_evaluations += sequences * sum(kept - len(group) for group in candidates)

    def _exhaustive(self, candidates: Sequence[Removal]) -> dict[Removal, float]:
        values = self.ablation.evaluate([self.removed.union(group) for group in candidates])
        return {group: value - self.value for group, value in zip(candidates, values, strict=True)}

    def _lazy(self, candidates: Sequence[Removal]) -> dict[Removal, float]:
        """Increases of the candidates that were evaluated in full."""
        removed = self.removed
        self._look(self._to_look_at(candidates), removed)
        rate = {group: self.problem.saving(group, removed) for group in candidates}
        found: dict[Removal, float] = {}
        least, most = self.settings.num_full
        while len(found) < len(candidates):
            group = min(
                (group for group in candidates if group not in found),
                key=lambda group: (self.estimates[group].increase / rate[group], self._positions[group[0]]),
            )
            if self.estimates[group].looked != len(self.groups):
                self._look([group], removed)
                continue
            best = min((found[known] / rate[known] for known in found), default=math.inf)
            hopeless = self.estimates[group].increase / rate[group] > best + self.settings.tolerance * abs(best)
            if len(found) >= least and (hopeless or len(found) >= most):
                break
            found[group] = self._in_full(group, removed, self.value)
        return found

    def _to_look_at(self, candidates: Sequence[Removal]) -> list[Removal]:
        new = [group for group in candidates if group not in self.estimates]
        known = [group for group in candidates if group in self.estimates]
        removed = self.removed
        known.sort(key=lambda group: self.estimates[group].increase / self.problem.saving(group, removed))
        chosen = set(new) | set(known[: self.settings.num_looks])
        last = self.groups[-1] if self.groups else ()
        chosen |= {group for group in known if self._distance(group, last) <= self.settings.num_neighbours}
        waiting = [group for group in known[: 2 * self.settings.num_looks] if group not in chosen]
        waiting.sort(key=lambda group: self.estimates[group].looked)
        return sorted(chosen | set(waiting[: self.settings.num_oldest]))

    def _distance(self, group: Removal, other: Removal) -> float:
        pairs = [abs(self._positions[unit] - self._positions[near]) for unit in group for near in other]
        return min(pairs, default=math.inf)

    def _look(self, groups: Sequence[Removal], base: Removed) -> None:
        """Estimates the increase by each group on the pilot sequences."""
        before, *after = self.pilot.evaluate([base, *(base.union(group) for group in groups)])
        pairs = [known.in_full for known in self.estimates.values() if known.in_full]
        ratios = [full / pilot for full, pilot in pairs if pilot > 0]
        scale = sorted(ratios)[len(ratios) // 2] if ratios else 1.0
        for group, value in zip(groups, after, strict=True):
            increase = value - before
            known = self.estimates.get(group)
            in_full = known.in_full if known else None
            estimate = in_full[0] + (increase - in_full[1]) * scale if in_full else increase * scale
            self.estimates[group] = _Estimate(estimate, len(self.groups), in_full)

    def _in_full(self, group: Removal, base: Removed, base_value: float) -> float:
        """The increase by a group on the whole text; remembers how far the pilot was off."""
        before, after = self.pilot.evaluate([base, base.union(group)])
        increase = self.ablation(base.union(group)) - base_value
        self.estimates[group] = _Estimate(increase, len(self.groups), (increase, after - before))
        return increase

    def exchange_while_it_pays(self) -> None:
        """Exchanges a removed group with a kept one while the objective falls and the effort is not spent."""
        while self._effort_left() and self._exchange():
            pass

    def _effort_left(self) -> bool:
        spent = self.ablation.asked_unit_evaluations
        return self.settings.strategy == "exhaustive" or spent < self.settings.effort * self.naive_evaluations

    def _exchange(self) -> bool:
        """One exchange, if any of the likeliest lowers the objective."""
        removed = self.removed
        self._rebase(removed)
        parts = self._exchangeable()
        now, *without = self.pilot.evaluate([removed, *(removed.difference(part) for part in parts)])
        falls = {}
        for part, value in zip(parts, without, strict=True):
            saving = self.problem.saving(part, removed.difference(part))
            falls[part] = (now - value) / saving if saving > 0 else math.inf
        for part in sorted(parts, key=lambda part: -falls[part])[:3]:
            if not self._effort_left():
                return False
            base = removed.difference(part)
            self._rebase(base)
            base_value = self.ablation(base)
            candidates = [c for c in self.candidates(base) if c != part and self._may_replace(part, c)]
            candidates.sort(key=lambda c: self.estimates[c].increase if c in self.estimates else math.inf)
            near = [c for c in candidates if self._distance(c, part) <= self.settings.num_neighbours]
            looked = list(dict.fromkeys([*candidates[: 2 * self.settings.num_looks], *near]))
            if not looked:
                continue
            self._look(looked, base)
            for other in sorted(looked, key=lambda c: self.estimates[c].increase)[: self.settings.num_full[0]]:
                if base_value + self.estimates[other].increase > self.value + self.settings.tolerance * abs(self.value):
                    break
                if base_value + self._in_full(other, base, base_value) < self.value - IMPROVEMENT * abs(self.value):
                    self._replace(part, other)
                    return True
        return False

    def _exchangeable(self) -> list[Removal]:
        """What may be exchanged: every group, and where single sublayers may go, each half of a pair by itself."""
        halves = [(unit,) for group in self.groups if self.problem.unit == "sublayer" for unit in group]
        return list(dict.fromkeys([*self.groups, *halves]))

    def _may_replace(self, part: Removal, other: Removal) -> bool:
        """Whether the budget stays met, and what is kept can still be cut into groups."""
        removed = self.removed.difference(part).union(other)
        return self.problem.is_met(removed) and self.problem.is_whole(removed)

    def _replace(self, part: Removal, other: Removal) -> None:
        """Puts other units in the place that a part has in the path, and values the steps from there on anew."""
        place = next(place for place, group in enumerate(self.groups) if part[0] in group)
        self.groups[place] = tuple(sorted({*self.groups[place], *other} - set(part)))
        self.groups = self.problem.regroup(self.groups)
        self.values = [*self.values[:place]]
        for count in range(place, len(self.groups)):
            self.values.append(self.ablation(frozenset(unit for g in self.groups[: count + 1] for unit in g)))


SEARCHES.register("greedy", Greedy, summary="least damage to the output, step by step (the default)", source="ours")
SEARCHES.register(
    "finercut",
    partial(
        Greedy,
        objective="js",
        strategy="exhaustive",
        swap=False,
        joint=False,
        preferred_unit="sublayer",
        protected_fraction=0.4,
    ),
    summary="greedy over sublayers by Jensen-Shannon divergence, first blocks protected",
    source="FinerCut, arXiv 2405.18218",
)
SEARCHES.register(
    "sleb",
    partial(Greedy, objective="loss", strategy="exhaustive", swap=False, preferred_unit="block"),
    summary="greedy over blocks by the loss",
    source="SLEB, arXiv 2402.09025",
)
SEARCHES.register(
    "blockpruner",
    partial(Greedy, objective="loss", strategy="exhaustive", swap=False, joint=False, preferred_unit="sublayer"),
    summary="greedy over sublayers by the loss",
    source="BlockPruner, arXiv 2406.10594",
)
