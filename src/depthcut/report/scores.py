"""The scores as tables of text: every metric per unit, and the least angular distance of every block size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from depthcut.report.removal import ranges, removed_blocks
from depthcut.report.table import UNKNOWN, value_text
from depthcut.types import Plan, Scores, ScoreTable, Unit


@dataclass(frozen=True)
class ScoreGrid:
    """All metrics of one kind of unit.

    Attributes:
        heads: metric and its unit of measure, one for each column.
        rows: the unit, the step that removed it (empty where it is kept), and its value by every metric.
    """

    title: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def score_grids(table: ScoreTable, plan: Plan) -> list[ScoreGrid]:
    """One grid for the blocks and one for the sublayers, where the table holds such scores."""
    grids: list[ScoreGrid] = []
    titles: tuple[tuple[Literal["block", "sublayer"], str], ...] = (("block", "Block"), ("sublayer", "Sublayer"))
    for unit, title in titles:
        columns = [scores for scores in table.scores if scores.unit == unit]
        keys = sorted({key for scores in columns for key in scores.values}, key=_order_of_execution)
        orders = _removal_orders(plan, unit)
        if columns:
            grids.append(
                ScoreGrid(
                    title,
                    tuple((scores.metric, scores.measure) for scores in columns),
                    tuple((key, orders.get(key, ""), tuple(_text(scores, key) for scores in columns)) for key in keys),
                )
            )
    return grids


def nearest_windows(angular: tuple[tuple[float, ...], ...]) -> list[tuple[int, str, str]]:
    """For every number n of blocks: n, the window of n blocks that turns the stream least, and its distance."""
    windows: list[tuple[int, str, str]] = []
    for size in range(1, len(angular) + 1):
        start = min(range(len(angular) - size + 1), key=lambda row: angular[row][size - 1])
        window = ranges(range(start, start + size))
        windows.append((size, window, value_text(angular[start][size - 1], "number", 4)))
    return windows


def _order_of_execution(key: str) -> Unit:
    return Unit.parse(key) if "." in key else Unit(int(key), "attn")


def _removal_orders(plan: Plan, unit: Literal["block", "sublayer"]) -> dict[str, str]:
    """The 1-based step that removed each unit; of a whole block that left in parts, the steps of its parts."""
    gone = set(removed_blocks(plan))
    orders: dict[str, list[int]] = {}
    for order, step in enumerate(plan.steps, start=1):
        for removed in step.remove if step.applied else ():
            if unit == "block" and removed.layer not in gone:
                continue
            key = str(removed.layer) if unit == "block" else str(removed)
            if order not in orders.setdefault(key, []):
                orders[key].append(order)
    return {key: ", ".join(map(str, steps)) for key, steps in orders.items()}


def _text(scores: Scores, key: str) -> str:
    if key not in scores.values:
        return UNKNOWN
    return value_text(scores.values[key], "number", 4, (scores.standard_errors or {}).get(key))
