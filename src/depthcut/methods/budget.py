"""How much has to go, as users say it, and as ceilings that sums over the kept units must not pass."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from depthcut.ablation.objectives import find_objective
from depthcut.model.units import ModelSizes
from depthcut.types import InputError, Latency, Unit

ROUNDING = 1e-9
"""Relative, of all that has to go: a share that was computed from exactly some units must not ask for one more."""

SHARES = ("parameters", "kv", "latency")
"""Budgets that say which fraction may stay."""
TIMED = ("latency", "tokens-per-second")
"""Budgets that need units to be timed."""
SPELLINGS = (
    "parameters=0.8, kv=0.7 or latency=0.8, the fraction between 0 and 1 that stays; bytes=8GB, what the weights may "
    "take; memory=22GiB,context=131072,batch=4; tokens-per-second=60,context=4096; or several joined with +"
)


@dataclass(frozen=True)
class Budget:
    """How much goes: a count or share of units, what may stay of something, or all that may go at a cost.

    Attributes:
        kind: what `amount` is of.
        amount: units to remove (`count`), fraction of the units to remove (`share`), largest fraction of the dense
            model's parameters, KV bytes or decoding time that may stay, most bytes that the weights may take, or
            weights and cache together (`memory`), fewest tokens a second of all sequences together, or largest increase
            of an objective on held-out text.
        objective: which objective may increase, for `increase`.
        context: tokens of a sequence, for `memory` and `tokens-per-second`; there 0 is the timed default.
        batch: sequences at once, likewise.
        also: further budgets that must hold at the same time; none of them counts units.
    """

    kind: Literal["count", "share", "parameters", "kv", "latency", "bytes", "memory", "tokens-per-second", "increase"]
    amount: float
    objective: str = ""
    context: int = 0
    batch: int = 1
    also: tuple[Budget, ...] = ()

    @property
    def all(self) -> tuple[Budget, ...]:
        """This one, and those that must hold at the same time."""
        return (replace(self, also=()), *self.also)

    @property
    def is_timed(self) -> bool:
        """Whether units have to be timed."""
        return any(each.kind in TIMED for each in self.all)

    @property
    def timing(self) -> tuple[int, int]:
        """The context and the batch at which units are timed."""
        return next(((each.context, each.batch) for each in self.all if each.kind in TIMED), (0, 1))

    def __str__(self) -> str:
        if self.kind == "count":
            return f"remove {self.amount:g}"
        if self.kind == "increase":
            return f"remove what costs at most {self.objective}={self.amount:g}"
        if self.kind == "share":
            return f"remove {100 * self.amount:g}%"
        return "reach " + "+".join(each._spelled for each in self.all)

    @property
    def _spelled(self) -> str:
        amount = f"{self.amount / 2**30:g}GiB" if self.kind == "memory" else f"{self.amount:g}"
        settings = f",context={self.context}" if self.context else ""
        return f"{self.kind}={amount}{settings}" + (f",batch={self.batch}" if self.batch > 1 else "")

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
            return cls._of_units(str(remove))
        first, *others = [cls._remaining(part.strip(), str(budget)) for part in str(budget).split("+")]
        kinds = [each.kind for each in (first, *others)]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise InputError(f"budget {budget!r} names {twice.pop()} twice; leave one out")
        timings = {(each.context, each.batch) for each in (first, *others) if each.kind in TIMED}
        if len(timings) > 1:
            raise InputError(f"budget {budget!r} counts time twice, and it is measured once; leave one of them out")
        return replace(first, also=tuple(others))

    @classmethod
    def _of_units(cls, remove: str) -> Budget:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", remove.strip())
        if match is None or (not match[2] and "." in match[1]):
            raise InputError(f"remove {remove!r} is no amount: write a share such as 25% or a count such as 8")
        if not match[2]:
            return cls("count", float(match[1]))
        if float(match[1]) >= 100:
            raise InputError(f"cannot remove {remove}: something must remain, so give less than 100%")
        return cls("share", float(match[1]) / 100)

    @classmethod
    def _remaining(cls, part: str, whole: str) -> Budget:
        """One of the budgets that say what may stay."""
        first, *settings = part.split(",")
        kind, _, amount = first.partition("=")
        counts = {"context": 0, "batch": 1}
        for setting in settings:
            name, _, value = setting.strip().partition("=")
            if (
                name not in counts
                or kind not in ("memory", "tokens-per-second")
                or not re.fullmatch("[1-9][0-9]*", value)
            ):
                raise InputError(f"budget {whole!r} cannot be set so ({setting}): write {SPELLINGS}")
            counts[name] = int(value)
        if kind in ("bytes", "memory") and amount.endswith("B"):
            if kind == "memory" and not counts["context"]:
                raise InputError(f"budget {whole!r}: how long are the sequences? write {first},context=8192,batch=1")
            return cls(kind, parse_bytes(amount, "budget"), **counts)  # type: ignore[arg-type]
        number = float(amount) if re.fullmatch(r"\d*\.?\d+", amount) else 0.0
        if number > 0 and (kind == "tokens-per-second" or (kind in SHARES and number < 1)):
            return cls(kind, number, **counts)  # type: ignore[arg-type]
        raise InputError(f"budget {whole!r} is unknown: write {SPELLINGS}")

    def of_weights(self, parameters: int, stored: StoredBytes) -> Budget:
        """The same with bytes of weights as the share of parameters that fits into them.

        Raises:
            InputError: the weights fit already.
        """
        if not any(each.kind == "bytes" for each in self.all):
            return self
        first, *others = [_of_weights(each, parameters, stored) for each in self.all]
        return replace(first, also=tuple(others))


@dataclass(frozen=True)
class StoredBytes:
    """What a model's weights take as they are written.

    Attributes:
        total: bytes of all.
        of_unit: bytes of one parameter of a unit.
    """

    total: float
    of_unit: float


def _of_weights(budget: Budget, parameters: int, stored: StoredBytes) -> Budget:
    if budget.kind != "bytes":
        return budget
    if budget.amount >= stored.total:
        raise InputError(
            f"nothing has to go: the weights take {stored.total / 1e9:.2f} GB ({stored.total / parameters:.3g} bytes a "
            f"parameter), and the budget is {budget.amount / 1e9:.2f} GB; give less"
        )
    gone = (stored.total - budget.amount) / stored.of_unit
    return Budget("parameters", 1 - gone / parameters)


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
class Memory:
    """What a model takes while it decodes, in bytes.

    Attributes:
        fixed: of what no unit holds: embeddings, head, norms.
        units: weights and cache of every unit.
    """

    fixed: float
    units: Mapping[Unit, float]

    def without(self, removed: Collection[Unit]) -> float:
        return self.fixed + sum(num_bytes for unit, num_bytes in self.units.items() if unit not in removed)


@dataclass(frozen=True)
class Ceiling:
    """A sum over the kept units that must come down.

    Attributes:
        prices: what each unit holds of it.
        excess: by how much the dense model is above.
    """

    prices: Mapping[Unit, float]
    excess: float

    def price(self, units: Collection[Unit]) -> float:
        """The sum over these units."""
        return sum(self.prices[unit] for unit in units)

    def surplus(self, removed: Collection[Unit]) -> float:
        """How much the sum over the kept units is above the limit."""
        return self.excess - self.price(removed)


def ceiling(budget: Budget, sizes: ModelSizes, latency: Latency | None, memory: Memory | None) -> Ceiling | None:
    """The ceiling that one budget sets; None where it counts units, or needs what is not measured yet."""
    prices: dict[Unit, float]
    if budget.kind == "parameters":
        prices = {unit: size.parameters for unit, size in sizes.units.items()}
        total = float(sizes.parameters)
    elif budget.kind == "kv":
        prices = {unit: size.kv_bytes_per_token for unit, size in sizes.units.items()}
        total = float(sizes.kv_bytes_per_token)
    elif budget.kind == "memory" and memory is not None:
        return Ceiling(memory.units, memory.without(()) - budget.amount)
    elif budget.kind in TIMED and latency is not None:
        prices = {unit: latency.unit_seconds[unit.kind] for unit in sizes.units}
        total = latency.token_seconds
        if budget.kind == "tokens-per-second":
            return Ceiling(prices, (total - budget.batch / budget.amount) * (1 - ROUNDING))
    else:
        return None
    return Ceiling(prices, (1 - budget.amount) * total * (1 - ROUNDING))
