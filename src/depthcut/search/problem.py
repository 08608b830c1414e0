"""What a search is given: what may be removed, what is known about it, and when it is enough."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.objectives import find_objective
from depthcut.model.branches import Architecture
from depthcut.model.units import ModelSizes
from depthcut.registry import Registry
from depthcut.types import Cost, InputError, Latency, Removal, Scores, ScoreTable, Step, Unit, UnitChoice

ROUNDING, PRICE_ROUNDING = 1e-9, 1e-6
"""Relative: of all that has to go, and of what one step saves."""
REMAINING_SHARES = ("parameters", "kv", "latency")


@dataclass(frozen=True)
class Budget:
    """How much goes: a count or share of units, what stays of parameters, KV or time, or all that may go at a cost.

    Attributes:
        kind: what `amount` is of.
        amount: units to remove (`count`), fraction of the units to remove (`share`), largest fraction of the dense
            model's parameters, KV bytes or decoding time that may stay, most bytes that the weights may take, or
            largest increase of an objective on held-out text.
        objective: which objective may increase, for `increase`.
    """

    kind: Literal["count", "share", "parameters", "kv", "latency", "bytes", "increase"]
    amount: float
    objective: str = ""

    def __str__(self) -> str:
        if self.kind == "count":
            return f"remove {self.amount:g}"
        if self.kind == "increase":
            return f"remove what costs at most {self.objective}={self.amount:g}"
        return f"remove {100 * self.amount:g}%" if self.kind == "share" else f"reach {self.kind}={self.amount:g}"

    @classmethod
    def parse(cls, remove: str | int | None, budget: str | None, max_increase: str | None = None) -> Budget:
        """Reads `--remove 25%`, `--remove 8`, `--budget parameters=0.8`, `bytes=8GB` or `--max-increase kl=0.1`.

        Raises:
            InputError: not exactly one is given, or the amount is out of range.
        """
        num_given = 3 - [remove, budget, max_increase].count(None)
        if num_given != 1:
            given = "none" if num_given == 0 else "both" if num_given == 2 else "all"
            raise InputError(
                "give exactly one of remove (25% or 8), budget (parameters=0.8 or kv=0.7) and max-increase (kl=0.1), "
                f"not {given}"
            )
        if max_increase is not None:
            match = re.fullmatch(r"(.+)=(\d*\.?\d+)", max_increase.strip())
            if match is None:
                raise InputError(f"max-increase {max_increase!r} is no amount: write an objective's, such as kl=0.1")
            find_objective(match[1])
            return cls("increase", float(match[2]), match[1])
        if remove is not None:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(remove).strip())
            if match is None or (not match[2] and "." in match[1]):
                raise InputError(f"remove {remove!r} is no amount: write a share such as 25% or a count such as 8")
            if not match[2]:
                return cls("count", float(match[1]))
            if float(match[1]) >= 100:
                raise InputError(f"cannot remove {remove}: something must remain, so give less than 100%")
            return cls("share", float(match[1]) / 100)
        kind, _, amount = str(budget).strip().partition("=")
        if kind == "bytes" and amount.endswith("B"):
            return cls("bytes", parse_bytes(amount, "budget"))
        match = re.fullmatch(r"(\w+)=(\d*\.?\d+)", str(budget).strip())
        if match is None or match[1] not in REMAINING_SHARES or not 0 < float(match[2]) < 1:
            raise InputError(
                f"budget {budget!r} is unknown: write parameters=0.8, kv=0.7 or latency=0.8, the fraction between 0 "
                "and 1 that stays, or bytes=8GB, what the weights may take"
            )
        return cls(match[1], float(match[2]))  # type: ignore[arg-type]

    def of_weights(self, parameters: int, bytes_per_parameter: int) -> Budget:
        """A budget in bytes as the share of parameters that fits into them; any other as it is.

        Raises:
            InputError: the weights fit already.
        """
        if self.kind != "bytes":
            return self
        share = self.amount / (parameters * bytes_per_parameter)
        if share >= 1:
            raise InputError(
                f"nothing has to go: the weights take {parameters * bytes_per_parameter / 1e9:.2f} GB "
                f"({bytes_per_parameter} bytes a parameter), and the budget is {self.amount / 1e9:.2f} GB; give less"
            )
        return Budget("parameters", share)


def parse_bytes(text: str, option: str) -> int:
    """Reads `8GB`, `2GiB` or `800MiB`.

    Args:
        option: what is given so, for the error.

    Raises:
        InputError: it is no amount.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B", text)
    if match is None:
        raise InputError(f"{option} {text!r} is no amount; write 2GiB or 800MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))


@dataclass(frozen=True)
class Problem:
    """One search's task.

    Attributes:
        unit: what one step removes.
        protected: units that must stay; those of blocks that the family cannot do without are added.
        scores: the static scores, where the search asks for them.
        ablation: what the output loses without a set of units, where the search asks for it.
        held_out: the objective that has a ceiling, on calibration text that decides nothing else.
        latency: what units cost in time, where the budget counts that.
        advance: called with 1 after each step that a long search has taken.
        keep_scores: called with importances that a search has estimated, which belong into `scores.json`.
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
    advance: Callable[[int], None] = lambda _: None
    keep_scores: Callable[[Scores], None] = lambda _: None
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
        return [group for group in groups if not self._is_priced or self._price(group) > 0]

    def joint_candidates(self, removed: Collection[Unit] = ()) -> list[Removal]:
        """Pairs that may go in one step where single sublayers may go and the budget counts parameters.

        An attention and the feed-forward part next to it are often dear one by one and cheap together, which a search
        that goes unit by unit never sees. A pair that would save more than is asked for is none.
        """
        if self.unit != "sublayer" or self.budget.kind != "parameters" or not self.architecture.pairs:
            return []
        surplus = self._surplus(removed)
        pairs = replace(self, unit="pair").candidates(removed)
        return [pair for pair in pairs if self._price(pair) * (1 - PRICE_ROUNDING) <= surplus]

    @property
    def _is_priced(self) -> bool:
        """Whether the budget counts something that units have different amounts of; times are known once measured."""
        return self.budget.kind in REMAINING_SHARES and (self.budget.kind != "latency" or self.latency is not None)

    def _price(self, units: Collection[Unit]) -> float:
        """How much of what the budget counts these units hold."""
        if self.budget.kind == "parameters":
            return sum(self.sizes.units[unit].parameters for unit in units)
        if self.budget.kind == "kv":
            return sum(self.sizes.units[unit].kv_bytes_per_token for unit in units)
        assert self.latency is not None
        return sum(self.latency.unit_seconds[unit.kind] for unit in units)

    def _surplus(self, removed: Collection[Unit] = ()) -> float:
        """How much of what the budget counts has still to go."""
        totals = {"parameters": self.sizes.parameters, "kv": self.sizes.kv_bytes_per_token}
        total = totals[self.budget.kind] if self.latency is None else self.latency.token_seconds
        # A share that was computed from exactly these units must not ask for one more.
        return (1 - self.budget.amount) * total * (1 - ROUNDING) - self._price(removed)

    def saving(self, group: Removal, removed: Collection[Unit]) -> float:
        """What removing a group brings towards the budget after others; a surplus at the end counts for nothing."""
        return min(self._price(group), self._surplus(removed)) if self._is_priced else 1.0

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
        if self.budget.kind in ("parameters", "kv") and candidates:
            mean = sum(map(self._price, candidates)) / len(candidates)
            return min(len(candidates), math.ceil(self._surplus() / mean))
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
        return self._surplus(removed) <= 0

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


SEARCHES: Registry[Search] = Registry("method", "depthcut.search", "depthcut.methods")
