"""Shapley importance: how much the objective rises, on average over what else is gone, when a player goes too.

A player is a unit, or the units of a block; the game's value is the objective of the set of units that is gone
(smaller = better), so larger importance = more damage. Three estimators, on any callable that gives that value:

- `leave_one_out`: the rise when the player alone goes. Deeper Look's released code (arXiv 2407.16286) computes this.
- `random_subsets`: mean value of random sub-networks without the player less the mean of those with it; the option of
  that code. Both means are over the same few sub-networks, so this is no unbiased estimate of the Shapley value.
- `permutation`: Shapley's definition, sampled. Players go one after the other in a random order and then in the reverse
  order (an antithetic pair: who went early goes late); a player's rises are averaged over orders. Unbiased, with a
  standard error over pairs.

Value calls come in an order in which keeping streams pays (`value_of`). In an order of removals every position changes
once, so the tails that have to be run sum to half a pass a set whatever the order is, less what is gone already.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.types import InputError, Removal, Scores

ValueOf = Callable[[Removed], float]
"""The objective when a set of units is gone; smaller = better."""
Ahead = Callable[[Sequence[Removed]], None]
"""Told which sets will be asked for next, so that several processes can divide them."""

DEFAULT_MAX_FORWARDS = 500
"""Eight pairs of 30 blocks."""
MIN_PAIRS = 2
"""Fewest antithetic pairs that have a standard error."""
TRUSTED_PAIRS = 5
"""Fewest pairs whose standard errors may end the sampling: of less they are too often small by chance."""


@dataclass(frozen=True)
class Importance:
    """What an estimator found, in the order of the players.

    Attributes:
        standard_errors: None where the estimator has none.
        forwards: passes over the calibration text that it took; a set that came up again counts once.
    """

    players: tuple[Removal, ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...] | None
    forwards: float

    def scores(self, metric: str, unit: Literal["block", "sublayer"], measure: str) -> Scores:
        """The same as a record, by block (`17`) or by unit (`17.attn`).

        Args:
            measure: of the objective.
        """
        names = [str(player[0].layer if unit == "block" else player[0]) for player in self.players]
        errors = self.standard_errors
        return Scores(
            metric=metric,
            unit=unit,
            measure=f"{measure}; {self.forwards:g} forward passes",
            values=dict(zip(names, self.values, strict=True)),
            standard_errors=None if errors is None else dict(zip(names, errors, strict=True)),
        )


def value_of(ablation: Ablation) -> ValueOf:
    """The objective on the whole calibration text. Each set becomes the base, so that the next is run from where it
    differs."""

    def value(removed: Removed) -> float:
        ablation.rebase(removed)
        return ablation(removed)

    return value


def ahead_of(ablation: Ablation) -> Ahead:
    """Evaluates sets on the whole calibration text before they are asked for one by one."""

    def ahead(sets: Sequence[Removed]) -> None:
        ablation.ahead((removed, index) for removed in sets for index in range(ablation.num_batches))

    return ahead


def values_of_batches(ablation: Ablation) -> list[ValueOf]:
    """The objective on each batch of sequences alone, the mean over the sequences of the batch."""

    def of_batch(index: int) -> ValueOf:
        def value(removed: Removed) -> float:
            ablation.rebase(removed)
            return float(ablation.per_sequence([removed], [index]).mean())

        return value

    return [of_batch(index) for index in range(ablation.num_batches)]


def leave_one_out(
    players: Sequence[Removal], value: ValueOf, max_forwards: int | None = None, ahead: Ahead = lambda _: None
) -> Importance:
    """v({player}) - v({}). Costs one pass a player and one more.

    Raises:
        InputError: that is more than `max_forwards`.
    """
    needed = len(players) + 1
    if max_forwards is not None and max_forwards < needed:
        raise InputError(
            f"leaving each of {len(players)} units out once takes {needed} forward passes, more than the "
            f"{max_forwards} that max-forwards allows; allow {needed}"
        )
    ahead([frozenset(), *map(frozenset, players)])
    nothing = value(frozenset())
    values = tuple(value(frozenset(player)) - nothing for player in players)
    return Importance(tuple(players), values, None, needed)


def random_subsets(
    players: Sequence[Removal],
    values: Sequence[ValueOf],
    *,
    num_subsets: int = 10,
    keep_fraction: float = 0.5,
    seed: int = 0,
    ahead: Callable[[Sequence[tuple[Removed, int]]], None] = lambda _: None,
) -> Importance:
    """mean(v | player absent) - mean(v | player present) over random sub-networks of one size (Deeper Look's code).

    With a player gone, one fewer of the others is: a unit that adds nothing gets less than 0, and half-size networks
    can rank others below it.

    Args:
        values: of each part of the text: every part has sub-networks of its own, as every sample has there. All of them
            are pooled, each part counting the same.
        num_subsets: sub-networks a part; as many passes over the text.
        keep_fraction: share of the players that a sub-network keeps; their code 0.5, and 0.9 for MMLU.
        ahead: told all sets with the parts they are for.

    Returns:
        The importance, with the standard error of a difference of two means. Sub-networks are taken as independent,
        and differences between the parts of the text count as noise.

    Raises:
        InputError: so few sub-networks that some player is always or never (or all but once) among the kept.
    """
    num_absent = len(players) - math.floor(keep_fraction * len(players) + 0.5)
    num_absent = min(max(num_absent, 1), len(players) - 1)
    generator = random.Random(seed)
    drawn: list[tuple[int, list[int]]] = []
    for part in range(len(values)):
        subsets = [sorted(generator.sample(range(len(players)), num_absent)) for _ in range(num_subsets)]
        # Neighbours in this order agree on the longest start of the model.
        drawn += [(part, subset) for subset in sorted(subsets)]
    sets = [(frozenset(unit for place in subset for unit in players[place]), part) for part, subset in drawn]
    ahead(sets)
    found = [values[part](removed) for removed, part in sets]
    is_absent = torch.tensor([[place in subset for place in range(len(players))] for _, subset in drawn])
    all_values = torch.tensor(found, dtype=torch.float64)
    importance, errors = [], []
    for column in is_absent.T:
        absent, present = all_values[column], all_values[~column]
        if min(len(absent), len(present)) < 2:
            raise InputError(
                f"{len(found)} random sub-networks are too few: some unit is in all or none of them; ask for more "
                "forward passes (max-forwards), or more calibration samples"
            )
        importance.append(float(absent.mean() - present.mean()))
        errors.append(math.sqrt(float(absent.var() / len(absent) + present.var() / len(present))))
    return Importance(tuple(players), tuple(importance), tuple(errors), num_subsets)


def permutation(
    players: Sequence[Removal],
    value: ValueOf,
    *,
    max_forwards: int = DEFAULT_MAX_FORWARDS,
    target_share: float = 0.05,
    max_pairs: int = 1000,
    seed: int = 0,
    ahead: Ahead = lambda _: None,
) -> Importance:
    """Shapley values by antithetic permutation sampling, until the budget or the target is reached.

    No order is drawn twice, so that few players give exact values in the end; the standard errors take no credit for
    that before all orders were seen, and are on the safe side where many were.

    Sampling ends before the first pair that would need more than `max_forwards` sets in all; when every standard error
    is at most `target_share` of the mean absolute importance; or after `max_pairs`. Nothing else decides, so a run that
    finds sets already evaluated ends as the one that evaluated them.

    Args:
        max_forwards: different sets, each one pass over the calibration text; a pair takes at most 2 (players - 1)
            beside the empty and the full set.

    Returns:
        The importance; the values sum to v(all gone) - v(none gone) up to rounding.

    Raises:
        InputError: the budget is not enough for two pairs, which a standard error takes.
    """
    require_enough_forwards(len(players), max_forwards)
    known: dict[Removed, float] = {}
    num_pairs = max(1, math.factorial(len(players)) // 2)
    orders = itertools.islice(_different_orders(len(players), seed), min(num_pairs, max_pairs))
    # The first so many are needed whatever they give.
    first = list(itertools.islice(orders, TRUSTED_PAIRS))
    ahead(_affordable(players, first, max_forwards))
    pairs: dict[tuple[int, ...], list[float]] = {}
    importance = errors = torch.zeros(0)
    for order in itertools.chain(first, orders):
        sets = _sets_of_pair(players, order)
        if len(known.keys() | set(sets)) > max_forwards:
            break
        ahead([removed for removed in sets if removed not in known])
        for removed in sets:
            if removed not in known:
                known[removed] = value(removed)
        rises = [_rises(o, [known[removed] for removed in _walk(players, o)]) for o in (order, order[::-1])]
        pairs[order] = [(first + second) / 2 for first, second in zip(*rises, strict=True)]
        importance, errors = _mean_and_error(list(pairs.values()), num_pairs)
        settled = bool(errors.max() <= target_share * importance.abs().mean())
        if len(pairs) >= TRUSTED_PAIRS and settled:
            break
    return Importance(tuple(players), tuple(importance.tolist()), tuple(errors.tolist()), len(known))


def require_enough_forwards(num_players: int, max_forwards: int) -> None:
    """Raises InputError when a budget may not be enough for two pairs, which a standard error takes."""
    needed = 2 * MIN_PAIRS * (num_players - 1) + 2
    if max_forwards < needed:
        raise InputError(
            f"{max_forwards} forward passes are too few for Shapley values of {num_players} units with standard "
            f"errors; allow at least {needed} with max-forwards"
        )


def _different_orders(num_players: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Random orders of the players, none twice nor reversed; after the last one it never ends."""
    generator = random.Random(seed)
    drawn: set[tuple[int, ...]] = set()
    while True:
        order = tuple(generator.sample(range(num_players), num_players))
        if order not in drawn and order[::-1] not in drawn:
            drawn.add(order)
            yield order


def _affordable(players: Sequence[Removal], orders: Sequence[tuple[int, ...]], max_forwards: int) -> list[Removed]:
    """The sets of the first pairs that a budget allows, none twice."""
    sets: dict[Removed, None] = {}
    for order in orders:
        longer = sets | dict.fromkeys(_sets_of_pair(players, order))
        if len(longer) > max_forwards:
            break
        sets = longer
    return list(sets)


def _sets_of_pair(players: Sequence[Removal], order: tuple[int, ...]) -> list[Removed]:
    """What is gone as players go in an order, and then in the reverse order."""
    return [*_walk(players, order), *_walk(players, order[::-1])]


def _walk(players: Sequence[Removal], order: Sequence[int]) -> list[Removed]:
    """The sets that are gone as players go in order: the empty one first, all of them last."""
    sets: list[Removed] = [frozenset()]
    for place in order:
        sets.append(sets[-1].union(players[place]))
    return sets


def _rises(order: Sequence[int], values: Sequence[float]) -> list[float]:
    """What each player adds as it goes, by player; their sum is the last value less the first."""
    rises = [0.0] * len(order)
    for step, place in enumerate(order):
        rises[place] = values[step + 1] - values[step]
    return rises


def _mean_and_error(pairs: Sequence[Sequence[float]], num_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By player, over pairs; the error is infinite while there is one of several pairs, and 0 once all were seen."""
    table = torch.tensor(pairs, dtype=torch.float64)
    if len(table) == num_pairs:
        return table.mean(dim=0), torch.zeros_like(table[0])
    if len(table) < MIN_PAIRS:
        return table[0], torch.full_like(table[0], math.inf)
    return table.mean(dim=0), table.std(dim=0) / math.sqrt(len(table))
