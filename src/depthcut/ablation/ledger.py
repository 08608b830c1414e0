"""Values of evaluated sets and their cost: in memory, in the journal, and as the counts that a plan reports."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from depthcut.process.journal import Journal
from depthcut.process.ranks import Ranks
from depthcut.types import InputError, Unit

Removed = frozenset[Unit]
Key = tuple[Removed, int]
"""A set, and the batch that it is evaluated on."""


class Ledger:
    """Results on one text, by set and batch.

    Args:
        text: digest of the text; the journal may hold results of others.

    Attributes:
        num_known: sets whose value is known, by batch.
        num_evaluated: keys that this process has evaluated.
        asked: keys that were asked for.
        asked_cost: unit evaluations that these took, in any process and at any time.
        walked_cost: unit evaluations of running batches of the base up to where candidates differ from it.
    """

    def __init__(self, journal: Journal, text: str) -> None:
        self.journal, self._text = journal, text
        self._memo = self._by_key(journal.lines)
        self._own = self._by_key(journal.own)
        self.num_known = Counter(index for _, index in self._memo)
        self.num_evaluated = 0
        self.asked: set[Key] = set()
        self.asked_cost = self.walked_cost = 0

    def __contains__(self, key: Key) -> bool:
        """Whether every process knows the value."""
        return key in self._memo

    def values(self, key: Key) -> list[float]:
        found: list[float] = self._memo[key]["values"]
        return found

    def own_line(self, key: Key) -> dict[str, Any] | None:
        """The journal line of an earlier process of this shard, whose value the other processes do not have yet."""
        return self._own.get(key)

    def write_down(self, key: Key, base: Removed, values: list[float], unit_evaluations: int) -> dict[str, Any]:
        """Appends one result to the journal; it is known once all processes have learnt it."""
        removed, index = key
        line = {
            "text": self._text,
            "removed": sorted(map(str, removed & base)),
            "candidate": sorted(map(str, removed - base)),
            "batch": index,
            "values": values,
            "unit_evaluations": unit_evaluations,
        }
        self.journal.add(line)
        self.num_evaluated += 1
        return line

    def learn(self, ranks: Ranks, num_missing: int, found: list[dict[str, Any]]) -> None:
        """Adds the missing values that each process found."""
        shares = ranks.gather((num_missing, found))
        assert {missing for missing, _ in shares} == {sum(len(lines) for _, lines in shares)}, "ranks are out of step"
        for _, lines in shares:
            self._memo |= self._by_key(lines)
            self.num_known.update(line["batch"] for line in lines)

    def count_asked(self, keys: Sequence[Key]) -> None:
        """Counts what was asked for the first time."""
        for key in [key for key in keys if key not in self.asked]:
            self.asked.add(key)
            self.asked_cost += self._memo[key]["unit_evaluations"]

    def _by_key(self, lines: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        """Results on this text by their key. Raises InputError where a line of the journal is no result."""
        found = {}
        for line in lines:
            try:
                if line["text"] != self._text:
                    continue
                key = frozenset(map(Unit.parse, line["removed"] + line["candidate"])), operator.index(line["batch"])
                are_values = isinstance(line["values"], list) and all(
                    isinstance(n, int | float) for n in line["values"]
                )
                if not are_values or operator.index(line["unit_evaluations"]) < 0:
                    raise ValueError("no values")
            except (LookupError, TypeError, ValueError) as error:
                raise InputError(
                    f"the journal {self.journal.path} holds a line that is no result; --overwrite begins anew"
                ) from error
            found[key] = line
        return found
