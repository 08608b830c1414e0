"""A figure as one SVG that needs nothing else: axes, lines, marks and text, in the colours of the report page.

Colours are classes, so that a figure follows the reader's light or dark scheme; text is escaped.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 50, 50
CHARACTER = 6.6
"""Mean width of a character at the figures' size, in pixels."""
TITLE_CHARACTERS = 90
"""The most in one line of a title, of which there are two at most."""

NUM_SERIES = 6
_LIGHT = ("#1c2226", "#b5400f", "#1f6f8b", "#7a4fa3", "#5c7a1f", "#a3386b")
_DARK = ("#e6e9e8", "#ff9466", "#6cc0dd", "#c3a1ec", "#b5d268", "#f08fbf")
_SHADES = ((227, 234, 236), (111, 159, 180), (15, 53, 80))
"""Of a heat map, from the least to the greatest; monotone in lightness."""


def _scheme(paper: str, quiet: str, line: str, series: Sequence[str]) -> str:
    rules = [f".paper{{fill:{paper}}}", f".quiet{{fill:{quiet}}}", f".ink{{fill:{series[0]}}}"]
    rules += [f".grid{{stroke:{line}}}", f".rule{{stroke:{quiet}}}"]
    for place, colour in enumerate(series):
        rules += [f".l{place}{{stroke:{colour};fill:none}}", f".f{place}{{fill:{colour}}}"]
    return "".join(rules)


_STYLE = (
    "text{font:12px system-ui,sans-serif}.title{font-size:14px;font-weight:600}"
    + _scheme("#fcfcfa", "#5b666c", "#dcdfde", _LIGHT)
    + f"@media (prefers-color-scheme:dark){{{_scheme('#111517', '#9aa5a9', '#2b3235', _DARK)}}}"
)


@dataclass(frozen=True)
class Scale:
    """Values to pixels.

    Attributes:
        low, high: the values at the ends; apart, and above 0 where `is_log`.
        start, end: their pixels.
        linear: where above 0, values beyond it lie logarithmically and those up to it nearly evenly, of either sign.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    linear: float = 0.0

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, *, is_log: bool = False, from_zero: bool = False
    ) -> Scale:
        """A scale that holds all values, with a little room."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if is_log:
            return cls(low / 1.1, high * 1.1, start, end, is_log)
        low = min(low, 0.0) if from_zero else low
        room = 0.04 * (high - low) or 0.5
        return cls(low if from_zero and low == 0 else low - room, high + room, start, end)

    @classmethod
    def fitted(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """A scale on which values of any size can be told apart: even, logarithmic, or that of either sign."""
        if not _are_far_apart(values):
            return cls.over(values, start, end)
        if min(values) > 0:
            return cls.over(values, start, end, is_log=True)
        linear = 10.0 ** math.floor(math.log10(statistics.median(abs(value) for value in values if value)))
        ends = [math.asinh(value / linear) for value in (min(values), max(values))]
        room = 0.04 * (ends[1] - ends[0])
        low, high = (linear * math.sinh(value) for value in (ends[0] - room, ends[1] + room))
        return cls(low, high, start, end, linear=linear)

    @property
    def words(self) -> str:
        """What a label says about the scale."""
        return " (log scale)" if self.is_log else f" (log scale beyond {self.linear:g})" if self.linear else ""

    def __call__(self, value: float) -> float:
        low, value, high = (self._bent(each) for each in (self.low, value, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _bent(self, value: float) -> float:
        if self.linear:
            return math.asinh(value / self.linear)
        return math.log(value) if self.is_log else value

    def ticks(self, at_most: int = 7) -> list[float]:
        """Round values between the ends."""
        if self.linear:
            decades = range(math.ceil(math.log10(max(-self.low, self.high) / self.linear)))
            sizes = [self.linear * 10.0**decade for decade in decades]
            return [
                value for value in [*(-size for size in sizes[::-1]), 0.0, *sizes] if self.low <= value <= self.high
            ]
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                found = [step * 10.0**decade for decade in decades for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= at_most:
                    break
            if len(found) > 1:
                return found
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / at_most))
        step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= at_most)
        return [step * place for place in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _are_far_apart(values: Sequence[float], ratio: float = 20.0) -> bool:
    """Whether an even scale would show only the greatest values."""
    sizes = [abs(value) for value in values if value]
    return len(sizes) > 1 and max(sizes) / statistics.median(sizes) >= ratio


class Drawing:
    """One figure in the making; what is added later lies above.

    Args:
        title: stands above the figure and is what a screen reader says.
    """

    def __init__(self, title: str, width: float = WIDTH, height: float = HEIGHT) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{width:g}" height="{height:g}"/>',
        ]
        for place, line in enumerate(textwrap.wrap(title, TITLE_CHARACTERS, max_lines=2, placeholder=" …")):
            self.text(16, 24 + 18 * place, line, "ink title")
        self._taken: list[tuple[float, float, float, float]] = []

    def line(self, points: Sequence[tuple[float, float]], style: str, width: float = 1.0, dashes: str = "") -> None:
        """A line through points in pixels."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline class="{style}" fill="none" stroke-width="{width:g}"{dashed} points="{places}"/>'
        )

    def mark(self, x: float, y: float, style: str, shape: int = 0, radius: float = 3.5, told: str = "") -> None:
        """A dot, square, triangle or diamond, so that series differ without colour too.

        Args:
            told: what a pointer resting on it reads.
        """
        r = radius
        self._taken.append((x - r, x + r, y - r, y + r))
        bodies = (
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"',
            f'<path class="{style}" d="M{x - 0.9 * r:.1f} {y - 0.9 * r:.1f}h{1.8 * r:g}v{1.8 * r:g}h{-1.8 * r:g}z"',
            f'<path class="{style}" d="M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:g} {2 * r:g}h{-2.3 * r:g}z"',
            f'<path class="{style}" d="M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:g} {1.3 * r:g}l{-1.3 * r:g} {1.3 * r:g}'
            f'l{-1.3 * r:g} {-1.3 * r:g}z"',
        )
        body = bodies[shape % len(bodies)]
        name = body[1 : body.index(" ")]
        self._parts.append(f"{body}><title>{escape(told)}</title></{name}>" if told else f"{body}/>")

    def cell(self, x: float, y: float, width: float, height: float, fraction: float) -> None:
        """A rectangle of a heat map; 0 is the least, 1 the greatest."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_shade(fraction)}"/>'
        )

    def text(self, x: float, y: float, text: str, style: str = "quiet", anchor: str = "start") -> None:
        """One line of text."""
        placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{placed}>{escape(text)}</text>')

    def label(self, x: float, y: float, text: str) -> None:
        """The name of a mark, beside it; left out where it would cover another name or mark drawn before."""
        width = CHARACTER * len(text)
        for left, top in ((x + 6, y - 4), (x + 6, y + 12), (x - 6 - width, y - 4), (x - 6 - width, y + 12)):
            if not any(left < b and left + width > a and top - 11 < d and top > c for a, b, c, d in self._taken):
                self._taken.append((left, left + width, top - 10, top + 1))
                self.text(left, top, text, "ink")
                return

    def axes(self, x: Scale, y: Scale, x_label: str, y_label: str) -> None:
        """Grid, ticks and labels."""
        for tick in y.ticks():
            self.line([(x.start, y(tick)), (x.end, y(tick))], "grid")
            self.text(x.start - 8, y(tick) + 4, number(tick), anchor="end")
        self.line([(x.start, y.start), (x.end, y.start)], "rule")
        for tick in x.ticks(9):
            self.line([(x(tick), y.start), (x(tick), y.start + 4)], "rule")
            self.text(x(tick), y.start + 18, number(tick), anchor="middle")
        self.text(x.end, y.start + 36, f"{x_label} →", anchor="end")
        self.text(16, y.end - 10, f"↑ {y_label}")

    def render(self) -> str:
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def number(value: float) -> str:
    """A tick's or a mark's number."""
    return f"{value:.4g}"


def _shade(fraction: float) -> str:
    low, middle, high = _SHADES
    first, second, share = (low, middle, 2 * fraction) if fraction < 0.5 else (middle, high, 2 * fraction - 1)
    mixed = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
