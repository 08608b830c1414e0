"""Greedy removal by what the output loses: each step removes the candidate that does the least damage together with all
that is already gone (FinerCut, arXiv 2405.18218; SLEB, arXiv 2402.09025; BlockPruner, arXiv 2406.10594).

`exhaustive` evaluates every candidate of every round on the whole calibration text. `lazy` (ours) finds nearly the same
path for a small share of that. It keeps what it believes of every candidate, sequence by sequence, and each round

1. looks anew, on a pilot text of excerpts, at the neighbours of what was removed last, whose cost can fall once their
   neighbour is gone, and at all that may be the best by what was believed; what the pilot says of a candidate that has
   been run on the text itself only moves what is known of it;
2. lets those that may be the best by the noise of such a look race (`race.py`): they are run on more and more of the
   text, and one that falls behind by more than its noise leaves;
3. goes on from the winner's hidden states, which its run left.

Steps can be judged by damage per parameter or per KV byte saved, when that is what the budget counts. `swap` then
exchanges removed against kept units while that lowers the objective, in a race against what stands. Measured in
`benchmarks/search_cost.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.ablation.objectives import find_objective
from depthcut.methods.beliefs import Beliefs
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.methods.race import Racer, race
from depthcut.types import Cost, Removal, Step, UnitChoice

IMPROVEMENT = 1e-4
"""Share of the objective by which an exchange must lower it to be made: less is the noise of float32."""
LIKELY_PARTS = 6
"""Parts of what is removed that are offered in exchange, before it is said that no exchange helps."""
LIKELY_LOOKS, LIKELY_FULL = 6, 2.4
"""Looks and whole evaluations a round, as measured on SmolLM2: for estimates."""


@dataclass(frozen=True)
class Greedy:
    """Greedy search over whatever the problem's unit is.

    Attributes:
        objective: one of `OBJECTIVES`, compared with the dense model on the calibration text.
        strategy: `lazy` or `exhaustive`.
        swap: refine the final set by exchanges.
        pilot_fraction: share of the calibration tokens in the pilot text.
        num_neighbours: units on either side of the last removal that are looked at anew.
        tolerance: how much worse than the best look, as a share, what was believed may be to be looked at anew.
        num_racers: candidates that are run on the text itself each round, at most.
        standard_errors: of the noise, by how many a candidate may be behind the best and stay in the race.
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
    pilot_fraction: float = 0.125
    num_neighbours: int = 2
    tolerance: float = 0.2
    num_racers: int = 8
    standard_errors: float = 2.0
    joint: bool = True
    effort: float = 0.06
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
        # The dense pass keeps streams. Later rounds walk on from what was removed, candidates from where they leave.
        walked = units + sum(kept[1:]) / 2
        if self.strategy == "exhaustive":
            evaluated = 1.0 + sum(candidates - i for i in rounds)
            passes = walked + naive / 2
        else:
            looks = self.pilot_fraction * (candidates + (len(kept) - 1) * min(candidates, LIKELY_LOOKS))
            tails = len(kept) * LIKELY_FULL + looks
            # What candidates are compared with costs a vocabulary projection.
            evaluated = 1 + tails + self.pilot_fraction * len(kept)
            passes = units + self.pilot_fraction * walked + tails * sum(kept) / len(kept) / 2
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
    naive_evaluations: int = 0

    def __post_init__(self) -> None:
        self._positions = {unit: position for position, unit in enumerate(self.problem.units)}
        lazy = self.settings.strategy == "lazy"
        # What the first round will need whatever the dense value is, so that processes can divide it at once.
        first = [] if lazy or self.problem.is_met(frozenset()) else self.candidates(frozenset())
        self.dense_value = self.ablation.evaluate([frozenset(), *map(frozenset, first)])[0]
        self.pilot = self.ablation.on_excerpts(self.settings.pilot_fraction) if lazy else self.ablation
        self.beliefs = Beliefs(self.ablation, self.pilot)

    @property
    def removed(self) -> Removed:
        return frozenset(unit for group in self.groups for unit in group)

    @property
    def value(self) -> float:
        """The objective of what is removed so far."""
        return self.values[-1] if self.values else self.dense_value

    def candidates(self, removed: Removed) -> list[Removal]:
        """What the next step may remove."""
        problem = self.problem
        joint = problem.joint_candidates(removed) if self.settings.joint else []
        candidates = [group for group in joint or problem.candidates(removed) if problem.allows(removed.union(group))]
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
        """Increases of the candidates that were run on the whole text."""
        removed, weights = self.removed, self.ablation.weights
        rates = {group: self.problem.saving(group, removed) for group in candidates}
        raced: dict[Removal, Racer] = {}
        looked: set[Removal] = set()
        best: Racer | None = None
        while True:
            found = math.inf if best is None else best.mean(weights)
            self._look(rates, looked, found)
            racers = self._racers({group: rates[group] for group in rates if group in looked - raced.keys()}, found)
            if not racers:
                return {group: self.beliefs.increase(group) for group, racer in raced.items() if racer.is_through}
            raced |= racers
            through = self._race(list(racers.values()), best)
            best = min([*([best] if best else []), *through], key=lambda racer: racer.mean(weights))
            for group, racer in racers.items():
                self.beliefs.learn(group, racer)

    def _racers(self, rates: Mapping[Removal, float], found: float) -> dict[Removal, Racer]:
        """Of the groups that are believed to be best those that may be, by the noise of a look.

        Args:
            rates: of each group that was looked at and has not raced, what its increase is divided by.
            found: the least that was measured this round; then a group must be believed to be less by a standard error.
        """
        believed = {group: self.beliefs.increase(group) / rate for group, rate in rates.items()}
        order = sorted(rates, key=lambda group: (believed[group], group))[: self.settings.num_racers]
        least = believed[order[0]] if order else 0.0
        racers = {}
        for group in order:
            error = self.beliefs.error(group, least)
            most = least + self.settings.standard_errors * error if math.isinf(found) else found - error
            if believed[group] <= most:
                rate = rates[group]
                racers[group] = self.beliefs.racer(group, self.removed, least * rate, rate)
        return racers

    def _race(self, racers: Sequence[Racer], standing: Racer | None = None) -> list[Racer]:
        """Those that were run on the whole text; increases are counted from what is removed."""
        [reference] = self.ablation.per_sequence([self.removed], range(self.ablation.num_batches))
        standard_errors = self.settings.standard_errors
        return race(self.ablation, racers, reference, standard_errors=standard_errors, standing=standing)

    def _look(self, rates: Mapping[Removal, float], looked: set[Removal], found: float) -> None:
        """Looks on the pilot text at candidates that may be the best, until no other is believed to be near.

        Args:
            looked: what was looked at this round; grows.
            found: the least increase, divided by its rate, that has been measured this round.
        """
        last = self.groups[-1] if self.groups else ()
        near = [group for group in rates if self._distance(group, last) <= self.settings.num_neighbours]
        unknown = [group for group in rates if group not in self.beliefs]
        to_look_at = [group for group in dict.fromkeys([*unknown, *near]) if group not in looked]
        while True:
            self.beliefs.look(to_look_at, self.removed)
            looked.update(to_look_at)
            believed = {group: self.beliefs.increase(group) / rate for group, rate in rates.items()}
            best = min(believed.values())
            others = [group for group in rates if group not in looked]
            if math.isinf(found):
                most = best + self.settings.tolerance * abs(best)
                to_look_at = [group for group in others if believed[group] <= most]
            else:
                errors = {group: self.beliefs.error(group, believed[group]) for group in others}
                to_look_at = [group for group in others if believed[group] <= found - errors[group]]
            if not to_look_at:
                return

    def _distance(self, group: Removal, other: Removal) -> float:
        pairs = [abs(self._positions[unit] - self._positions[near]) for unit in group for near in other]
        return min(pairs, default=math.inf)

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
        falls = {part: now - value for part, value in zip(parts, without, strict=True)}
        savings = {part: self.problem.saving(part, removed.difference(part)) for part in parts}
        parts.sort(key=lambda part: -falls[part] / savings[part] if savings[part] > 0 else -math.inf)
        for part in itertools.takewhile(lambda _: self._effort_left(), parts[:LIKELY_PARTS]):
            other = self._better_than(part, abs(falls[part]))
            if other is not None:
                self._replace(part, other)
                return True
        return False

    def _better_than(self, part: Removal, fall: float) -> Removal | None:
        """What lowers the objective most in place of a part of what is removed, if anything that looks like it does.

        Args:
            fall: by how much the objective falls without the part, about.
        """
        removed = self.removed
        base = removed.difference(part)
        self._rebase(base)
        candidates = [c for c in self.candidates(base) if c != part and self._may_replace(part, c)]
        candidates.sort(key=self.beliefs.increase)
        near = [c for c in candidates if self._distance(c, part) <= self.settings.num_neighbours]
        likely = list(dict.fromkeys([*candidates[: self.settings.num_racers], *near]))
        if not likely:
            return None
        others = {base.union(group): group for group in likely}
        racers = self.beliefs.challengers(
            list(others), removed, fall=fall, standard_errors=self.settings.standard_errors
        )
        weights = self.ablation.weights
        noise = max((racer.noise for racer in racers), default=0.0)
        standing = Racer(removed, torch.zeros_like(weights), noise, 0.0, surprises=torch.zeros_like(weights))
        through = self._race(racers, standing)
        best = min(through, key=lambda racer: racer.mean(weights), default=standing)
        return others[best.removed] if best.mean(weights) < -IMPROVEMENT * abs(self.value) else None

    def _exchangeable(self) -> list[Removal]:
        """What may be exchanged: every group, where single sublayers may go each half of one, and of pairs any two that
        leave whole pairs, whichever went together."""
        removed = self.removed
        others: Iterable[Removal] = []
        if self.problem.unit == "sublayer":
            others = [(unit,) for group in self.groups for unit in group]
        elif self.problem.unit == "pair":
            others = (
                two
                for two in itertools.combinations(sorted(removed), 2)
                if self.problem.is_whole(removed.difference(two))
            )
        return list(dict.fromkeys([*self.groups, *others]))

    def _may_replace(self, part: Removal, other: Removal) -> bool:
        """Whether the budget stays met, and what is kept can still be cut into groups and written."""
        removed = self.removed.difference(part).union(other)
        return self.problem.is_met(removed) and self.problem.is_whole(removed) and self.problem.allows(removed)

    def _replace(self, part: Removal, other: Removal) -> None:
        """Puts other units in the place that a part has in the path, and values the steps from there on anew."""
        place = next(place for place, group in enumerate(self.groups) if not set(part).isdisjoint(group))
        left = [set(group).difference(part) for group in self.groups]
        left[place].update(other)
        self.groups = self.problem.regroup([tuple(sorted(group)) for group in left])
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
