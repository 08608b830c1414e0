"""The figures of studies: curves that may collapse, units by two measures, and a value for every window of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.studies.svg import BOTTOM, CHARACTER, LEFT, NUM_SERIES, RIGHT, TOP, Drawing, Scale, number

LINE = 15.0
"""Pixels from one line of text to the next."""


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        points: x, ascending, and y.
        collapse: index of the last point before a collapse.
        colour: place among the colours.
        is_dashed: drawn with gaps.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    collapse: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Point:
    """One unit by two measures.

    Attributes:
        group: points of a group look alike.
        is_named: whether its name stands beside it.
    """

    name: str
    x: float
    y: float
    group: str = ""
    is_named: bool = False


def curve_chart(title: str, x_label: str, y_label: str, curves: Sequence[Curve], *, is_log: bool = False) -> str:
    """Curves with their names at their ends; a ring marks the last point before a collapse."""
    # What overflowed is off every scale.
    kept = [
        (curve, [(x, y) for x, y in curve.points if math.isfinite(y) and (y > 0 or not is_log)]) for curve in curves
    ]
    drawing = Drawing(title)
    room = RIGHT + CHARACTER * max((len(curve.name) for curve in curves), default=0)
    x = Scale.over([x for _, points in kept for x, _ in points], LEFT, drawing.width - room, from_zero=True)
    values = [y for _, points in kept for _, y in points]
    y = Scale.over(values, drawing.height - BOTTOM, TOP + 26, is_log=is_log, from_zero=not is_log and min(values) >= 0)
    drawing.axes(x, y, x_label, y_label + y.words)
    ends: list[tuple[float, float, Curve]] = []
    for curve, points in kept:
        colour = curve.colour % NUM_SERIES
        placed = [(x(at), y(value)) for at, value in points]
        drawing.line(placed, f"l{colour}", 1.8, "5 4" if curve.is_dashed else "")
        for (at, value), (left, top) in zip(points, placed, strict=True):
            told = f"{curve.name}: {number(value)} at {number(at)}"
            drawing.mark(left, top, f"f{colour}", shape=curve.colour, radius=2.6, told=told)
        if curve.collapse is not None and curve.points[curve.collapse] in points:
            left, top = placed[points.index(curve.points[curve.collapse])]
            drawing.mark(left, top, f"l{colour}", radius=7, told=f"{curve.name}: the last point before the collapse")
        if placed:
            ends.append((placed[-1][1], placed[-1][0], curve))
    lowest = -math.inf
    for top, left, curve in sorted(ends, key=lambda end: end[0]):
        lowest = max(top, lowest + LINE)
        drawing.text(left + 9, lowest + 4, curve.name, f"f{curve.colour % NUM_SERIES}")
    return drawing.render()


def unit_chart(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Point],
    *,
    may_be_log: bool = True,
) -> str:
    """Units as marks, a shape and a colour a group, with a legend where groups have names.

    Args:
        may_be_log: whether an axis with values far apart may be logarithmic.
    """
    drawing = Drawing(title, height=440)
    groups = list(dict.fromkeys(point.group for point in points))
    make = Scale.fitted if may_be_log else Scale.over
    x = make([point.x for point in points], LEFT, drawing.width - RIGHT - 30)
    y = make([point.y for point in points], drawing.height - BOTTOM, TOP + 26)
    drawing.axes(x, y, x_label + x.words, y_label + y.words)
    for point in points:
        style = groups.index(point.group) + 1
        told = f"{point.name}: {number(point.x)}, {number(point.y)}"
        drawing.mark(x(point.x), y(point.y), f"f{style % NUM_SERIES}", shape=style - 1, told=told)
    for point in points:
        if point.is_named:
            drawing.label(x(point.x), y(point.y), point.name)
    left = drawing.width - RIGHT - sum(CHARACTER * len(group) + 26 for group in groups)
    for place, group in enumerate(groups if any(groups) else []):
        drawing.mark(left, TOP + 12, f"f{(place + 1) % NUM_SERIES}", shape=place)
        drawing.text(left + 8, TOP + 16, group, "ink")
        left += CHARACTER * len(group) + 26
    return drawing.render()


def window_chart(title: str, measure: str, rows: Sequence[Sequence[float]]) -> str:
    """A value for every window of blocks: first block to the right, number of blocks upwards; dots mark the least.

    Args:
        rows: row l holds the values of the windows of 1, 2, ... blocks from block l on.
    """
    num_blocks = len(rows)
    drawing = Drawing(title, height=460)
    values = [value for row in rows for value in row]
    low, high = min(values), max(values)
    x = Scale(0, num_blocks, LEFT, drawing.width - RIGHT - 110)
    y = Scale(0.5, num_blocks + 0.5, drawing.height - BOTTOM, TOP + 26)
    drawing.axes(x, y, "first block of the window", "blocks in the window")
    width, height = x(1) - x(0), y(1) - y(2)
    for size in range(1, num_blocks + 1):
        starts = range(num_blocks - size + 1)
        for start in starts:
            fraction = (rows[start][size - 1] - low) / (high - low or 1)
            drawing.cell(x(start), y(size + 0.5), width, height, fraction)
        least = min(starts, key=lambda start: rows[start][size - 1])
        told = f"{size} from block {least}: {number(rows[least][size - 1])}"
        drawing.mark(x(least + 0.5), y(size), "f1", radius=2.2, told=told)
    left, top, tall = drawing.width - RIGHT - 84, TOP + 60.0, 160.0
    for step in range(20):
        drawing.cell(left, top + step * tall / 20, 14, tall / 20 + 0.5, 1 - step / 19)
    drawing.text(left, top - 12, measure, "ink")
    drawing.text(left + 20, top + 10, number(high))
    drawing.text(left + 20, top + tall, number(low))
    drawing.mark(left + 6, top + tall + 26, "f1", radius=2.2)
    drawing.text(left + 16, top + tall + 30, "the least")
    return drawing.render()
