"""The input of a search: the units that may be removed, their sizes and scores, and the budget."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from depthcut.ablation.ablation import Ablation
from depthcut.methods.budget import Budget, Ceiling, Memory, ceiling
from depthcut.model.branches import Architecture
from depthcut.model.units import ModelSizes
from depthcut.registry import Registry
from depthcut.types import Cost, InputError, Latency, Removal, Scores, ScoreTable, Step, Unit, UnitChoice

PRICE_ROUNDING = 1e-6
"""Relative, of what one step saves."""


@dataclass(frozen=True)
class Problem:
    """One search's task.

    Attributes:
        unit: what one step removes.
        protected: units that must stay; those of blocks that the family cannot do without are added.
        scores: the static scores, where the search asks for them.
        ablation: what the output loses without a set of units, where the search asks for it.
        held_out: the objective that has a ceiling, on calibration text that decides nothing else.
        latency: what units cost in time, where the budget counts that and they were timed.
        memory: what units take while decoding, where the budget counts that.
        advance: called with 1 after each step that a long search has taken.
        keep_scores: called with importances that a search has estimated, which belong into `scores.json`.
        allows: whether a model without a set of units can be written; no search ends at a set for which it is false.
        seed: of everything random.
    """

    architecture: Architecture
    num_blocks: int
    sizes: ModelSizes
    unit: UnitChoice
    budget: Budget
    protected: frozenset[Unit] = frozenset()
    scores: ScoreTable | None = None
    ablation: Ablation | None = None
    held_out: Ablation | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    advance: Callable[[int], None] = lambda _: None
    keep_scores: Callable[[Scores], None] = lambda _: None
    allows: Callable[[Collection[Unit]], bool] = lambda _: True
    seed: int = 0
    units: tuple[Unit, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", self.architecture.units(self.num_blocks))
        staying = {unit for unit in self.units if unit.layer in self.architecture.staying}
        object.__setattr__(self, "protected", self.protected | staying)

    @property
    def num_removable(self) -> int:
        """How many steps of this unit a model has: blocks for blocks and pairs, else sublayers of the kind."""
        return len(self.units) if self.unit == "sublayer" else self.num_blocks

    def candidates(self, removed: Collection[Unit] = ()) -> list[Removal]:
        """Everything that one step may remove from what is still there, in order of execution."""
        kept = [unit for unit in self.units if unit not in removed]
        groups: Sequence[Removal]
        if self.unit == "block":
            groups = [tuple(unit for unit in kept if unit.layer == layer) for layer in range(self.num_blocks)]
        elif self.unit == "pair":
            groups = [pair for pair in itertools.pairwise(kept) if pair[0].kind != pair[1].kind]
        else:
            groups = [(unit,) for unit in kept if self.unit in ("sublayer", unit.kind)]
        groups = [group for group in groups if group and not self.protected.intersection(group)]
        ceilings = [each for each in self._ceilings if each.surplus(removed) > 0] or self._ceilings
        return [group for group in groups if not ceilings or any(each.price(group) > 0 for each in ceilings)]

    def in_turn(self, groups: Sequence[Removal]) -> list[Removal]:
        """The groups in their order, each as soon as what is gone with it can be written; those that never can stay."""
        waiting, removed, found = list(groups), set[Unit](), list[Removal]()
        while group := next((group for group in waiting if self.allows(removed.union(group))), None):
            waiting.remove(group)
            removed.update(group)
            found.append(group)
        return found

    def joint_candidates(self, removed: Collection[Unit] = ()) -> list[Removal]:
        """Pairs that may go in one step where single sublayers may go and the budget counts weights.

        An attention and the feed-forward part next to it are often dear one by one and cheap together, which a search
        that goes unit by unit never sees. A pair that would save more than is asked for is none.
        """
        if self.unit != "sublayer" or not self.architecture.pairs or len(self._ceilings) != 1:
            return []
        if self.budget.kind not in ("parameters", "memory"):
            return []
        surplus = self._ceilings[0].surplus(removed)
        pairs = replace(self, unit="pair").candidates(removed)
        return [pair for pair in pairs if self._ceilings[0].price(pair) * (1 - PRICE_ROUNDING) <= surplus]

    @functools.cached_property
    def _ceilings(self) -> tuple[Ceiling, ...]:
        """What the budget sets a limit to, where units have different amounts of it; times are known once measured."""
        found = (ceiling(budget, self.sizes, self.latency, self.memory) for budget in self.budget.all)
        return tuple(each for each in found if each is not None)

    def saving(self, group: Removal, removed: Collection[Unit]) -> float:
        """What removing a group brings towards the budget after others; a surplus at the end counts for nothing.

        Of several ceilings, what counts is the sum of the shares of what each of them was above.
        """
        if not self._ceilings:
            return 1.0
        if len(self._ceilings) == 1:
            only = self._ceilings[0]
            return min(only.price(group), only.surplus(removed))
        above = [each for each in self._ceilings if each.excess > 0]
        return sum(min(each.price(group), max(each.surplus(removed), 0.0)) / each.excess for each in above)

    def is_whole(self, removed: Collection[Unit]) -> bool:
        """Whether what is kept still consists of whole pairs, where the unit is a pair; else always."""
        kinds = list(self.architecture.branches)
        kept = [unit.kind for unit in self.units if unit not in removed]
        return self.unit != "pair" or kept == kinds * (len(kept) // len(kinds))

    def regroup(self, groups: Sequence[Removal]) -> list[Removal]:
        """The same units in groups of which each can go in its turn, in nearly the same order.

        After an exchange a pair's halves may no longer be neighbours when its turn comes. Where what is kept consists
        of whole pairs, every run of removed units does too, cut from its start.
        """
        if self.unit != "pair":
            return list(groups)
        turn = {unit: index for index, group in enumerate(groups) for unit in group}
        removed = sorted(turn)
        pairs = list(zip(removed[::2], removed[1::2], strict=True))
        return sorted(pairs, key=lambda pair: min(turn[unit] for unit in pair))

    def num_steps(self, path: Sequence[Step]) -> int:
        """How many steps of a path the budget takes.

        Raises:
            InputError: the path ends before the budget is met.
        """
        removed: set[Unit] = set()
        for count, step in enumerate(path):
            if self.is_met(removed):
                # What may be lost is a ceiling: the step that went through it does not count.
                return count - 1 if self.budget.kind == "increase" else count
            removed.update(step.remove)
        if self.is_met(removed) or self.budget.kind == "increase":
            return len(path) - (self.budget.kind == "increase" and self.is_met(removed))
        raise InputError(
            f"cannot {self.budget} by {self.unit} units: the method finds no more than {len(path)} steps that may go "
            "(something must remain, and protected units stay); ask for less"
        )

    @property
    def steps_at_most(self) -> int:
        """Steps that the budget can take."""
        return self.wanted if self.budget.kind in ("count", "share") else len(self.candidates())

    @property
    def likely_steps(self) -> int:
        """Steps that the budget will take if units of mean size go; as many as it can where only the search tells."""
        candidates = self.candidates()
        if self._ceilings and candidates:
            totals = [(each.excess, sum(map(each.price, candidates))) for each in self._ceilings]
            needed = [math.ceil(excess * len(candidates) / total) for excess, total in totals if total]
            return min(len(candidates), max([1, *needed]))
        if self.budget.kind == "latency":
            return min(len(candidates), math.ceil((1 - self.budget.amount) * self.num_removable))
        return self.steps_at_most

    @property
    def wanted(self) -> int:
        """Blocks, pairs or sublayers that a count or a share asks for; a share is rounded to the nearest, halves up."""
        if self.budget.kind == "share":
            return math.floor(self.budget.amount * self.num_removable + 0.5)
        return int(self.budget.amount)

    def count(self, removed: Collection[Unit]) -> float:
        """How many blocks, pairs or sublayers these units are."""
        return len(removed) / (len(self.architecture.branches) if self.unit in ("block", "pair") else 1)

    def is_met(self, removed: Collection[Unit]) -> bool:
        """Whether removing these units is enough; for a ceiling, whether it is too much."""
        if self.budget.kind == "increase":
            assert self.held_out is not None
            return self.held_out(removed) - self.held_out([]) > self.budget.amount
        if self.budget.kind in ("count", "share"):
            return self.count(removed) >= self.wanted
        assert len(self._ceilings) == len(self.budget.all), "what the budget counts is not measured yet"
        return all(each.surplus(removed) <= 0 for each in self._ceilings)

    def check(self) -> None:
        """Checks what needs no weights.

        Raises:
            InputError: the unit does not suit the family, or more is to be removed than there is.
        """
        if self.unit == "pair" and not self.architecture.pairs:
            reason = "a block has one part only"
            if self.architecture.parallel:
                reason = "attention and feed-forward part of a block read the same stream"
            raise InputError(
                f"in this family {reason}, so pairs across blocks cannot be packed into an ordinary checkpoint; use "
                "--unit block, or sublayer"
            )
        removable = {unit for removal in self.candidates() for unit in removal}
        attentions = {unit for unit in self.units if unit.kind == "attn"}
        # Something must remain, and of the attentions one.
        possible = int(self.count(removable)) - (bool(attentions) and attentions <= removable)
        if self.budget.kind in ("count", "share") and self.wanted > possible:
            raise InputError(
                f"cannot remove {self.wanted} of {self.num_removable} {self.unit} units: at most {possible} can go "
                "(something must remain, and protected units stay)"
            )
        for each in self._ceilings:
            if each.price(removable) < each.excess:
                raise InputError(
                    f"cannot {self.budget} by {self.unit} units: all that may go are not enough; ask for less, or for "
                    "fewer protected units"
                )
        if self.memory is not None and not self.budget.is_timed and self.is_met(()):
            raise InputError(
                f"nothing has to go: the model takes {self.memory.without(()) / 2**30:.2f} GiB, and the budget says "
                f"{self.budget}; give less"
            )


class Search(Protocol):
    """Finds a path. A frozen dataclass whose fields are its hyper-parameters.

    Attributes:
        needs: what must be known before: nothing but the configuration, or the static scores.
        objective: what the steps' objective is called; None where it gives none.
        preferred_unit: what it removes where the user does not say.
    """

    @property
    def needs(self) -> Literal["configuration", "scores", "objective"]: ...

    @property
    def objective(self) -> str | None: ...

    @property
    def preferred_unit(self) -> UnitChoice: ...

    def path(self, problem: Problem) -> list[Step]:
        """Steps in order, as many as can go."""
        ...

    def check(self, problem: Problem) -> None:
        """Raises InputError where the search cannot take the problem's unit or budget; needs no weights."""
        ...

    def estimate(self, problem: Problem, num_sequences: int) -> Cost:
        """About what finding a path takes beside scoring, seconds aside: known before any weights load."""
        ...


SEARCHES: Registry[Search] = Registry("method", "depthcut.methods", "depthcut.methods")
