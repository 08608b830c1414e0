"""The figures of studies as values; `report/figures/study.js` draws them on the study's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from depthcut.studies.ranks import ranks
from depthcut.types import Record

NAMED_POINTS = 8
"""Units named in a figure of two measures: those that the two rank the most differently."""


class Curve(Record):
    """One curve.

    Attributes:
        points: x, ascending, and y; what is not finite is left out of the drawing.
        colour: place among the colours.
        collapse: index of the last point before a collapse, which gets a ring.
        is_dashed: drawn with gaps.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    collapse: int | None = None
    is_dashed: bool = False


class CurveFigure(Record):
    """Curves with their names at their ends.

    Attributes:
        is_log: whether the y axis is logarithmic.
    """

    kind: Literal["curves"] = "curves"
    title: str
    x_label: str
    y_label: str
    is_log: bool
    curves: tuple[Curve, ...]


class Point(Record):
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


class PointFigure(Record):
    """Units as marks, a shape and a colour a group.

    Attributes:
        may_be_log: whether an axis with values far apart may be logarithmic.
    """

    kind: Literal["points"] = "points"
    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    may_be_log: bool = True


def two_measures(
    title: str,
    x_label: str,
    y_label: str,
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[str],
) -> PointFigure:
    """Units by two measures, with the names of those that the two rank the most differently."""
    apart = abs(ranks(x) - ranks(y))
    named = set(sorted(range(len(apart)), key=lambda place: -apart[place])[:NAMED_POINTS])
    points = tuple(
        Point(name=name, x=first, y=second, group=group, is_named=place in named)
        for place, (name, first, second, group) in enumerate(zip(names, x, y, groups, strict=True))
    )
    return PointFigure(title=title, x_label=x_label, y_label=y_label, points=points)


class WindowFigure(Record):
    """A value for every window of blocks.

    Attributes:
        rows: row l holds the values of the windows of 1, 2, ... blocks from block l on.
    """

    kind: Literal["windows"] = "windows"
    title: str
    measure: str
    rows: tuple[tuple[float, ...], ...]


Figure = CurveFigure | PointFigure | WindowFigure
