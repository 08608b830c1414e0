"""Figures are well-formed, hold every value where it belongs, and no name can put markup into them."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from depthcut.studies.charts import Curve, Point, curve_chart, unit_chart, window_chart
from depthcut.studies.svg import Scale

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script> & more'


def titles(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_names_with_markup_are_text():
    curve = Curve(HOSTILE, ((0.0, 1.0), (1.0, 2.0)), colour=0)
    for svg in (
        curve_chart(HOSTILE, HOSTILE, HOSTILE, [curve]),
        unit_chart(HOSTILE, HOSTILE, HOSTILE, [Point(HOSTILE, 1.0, 2.0, HOSTILE, is_named=True)]),
        window_chart(HOSTILE, HOSTILE, [[0.1, 0.2], [0.3]]),
    ):
        root = ElementTree.fromstring(svg)
        assert not list(root.iter(f"{SVG}script"))
        assert HOSTILE in [element.text for element in root.iter(f"{SVG}text")]


def test_a_curve_leaves_out_what_overflowed_and_rings_the_collapse():
    points = ((0.0, 1.0), (1.0, 2.0), (2.0, math.inf), (3.0, 8.0))
    told = titles(curve_chart("t", "x", "y", [Curve("c", points, colour=0, collapse=1)]))
    assert told == ["c: 1 at 0", "c: 2 at 1", "c: 8 at 3", "c: the last point before the collapse"]


def test_every_window_has_a_cell_and_every_size_its_least():
    rows = [[0.3, 0.2, 0.5], [0.1, 0.4], [0.2]]
    told = titles(window_chart("t", "distance", rows))
    assert told == ["1 from block 1: 0.1", "2 from block 0: 0.2", "3 from block 0: 0.5", "", ""][:3]


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0, 3.0], [0.001, 0.002, 0.5, 40.0], [-0.01, 0.02, 0.001, 9.0], [5.0], [0.0, 0.0]],
)
def test_scales_keep_the_order_within_their_ends_and_have_ticks(values):
    scale = Scale.fitted(values, 100.0, 500.0)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] >= 100 and places[-1] <= 500
    ticks = scale.ticks()
    assert len(ticks) >= 2 and all(scale.low <= tick <= scale.high for tick in ticks)


def test_values_far_apart_of_either_sign_can_be_told_apart():
    scale = Scale.fitted([-0.02, 0.01, 0.02, 0.03, 9.0], 0.0, 100.0)
    assert scale(0.03) - scale(0.01) > 5
    assert "log scale beyond" in scale.words
