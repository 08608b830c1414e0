"""The page of a study in headless Chromium: every value is drawn, can be read, and no name can run."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from depthcut.studies.figures import Curve, CurveFigure, WindowFigure, two_measures
from depthcut.studies.study import Table, write_study
from report.example_report import make_run

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
SVG = "{http://www.w3.org/2000/svg}"
OVERFLOWED = ((0.0, 1.0), (1.0, 2.0), (2.0, math.inf), (3.0, 8.0))
FIGURES = {
    "quality": CurveFigure(
        title=HOSTILE,
        x_label="blocks removed",
        y_label="Perplexity",
        is_log=True,
        curves=(
            Curve(name=HOSTILE, points=OVERFLOWED, colour=0, collapse=1),
            Curve(name="repaired", points=((0.0, 1.0), (3.0, 4.0)), colour=0, is_dashed=True),
        ),
    ),
    "units": two_measures("u", "x", "y", ["a", "b", "c"], [0.1, 0.2, 0.3], [-0.02, 0.01, 9.0], ["attn", "ffn", "ffn"]),
    "windows": WindowFigure(title="w", measure="distance", rows=((0.3, 0.2, 0.5), (0.1, 0.4), (0.2,))),
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    table = Table(name="numbers", title=HOSTILE, columns=("Name", "Value"), rows=((HOSTILE, 0.123456),))
    write_study(
        folder,
        "sweep",
        command=HOSTILE,
        settings={},
        model=make_run().plan.model,
        texts={},
        findings=[HOSTILE],
        tables=[table],
        figures=FIGURES,
    )
    return folder / "study.html"


def test_names_with_markup_are_text(opened, page_file):
    page = opened(page_file)
    assert page.locator("main img, main script").count() == 0
    assert page.locator("h2").first.inner_text() == HOSTILE
    assert page.locator(".findings li").inner_text() == HOSTILE
    assert "0.1235" in page.locator("td").all_inner_texts()


def test_a_curve_leaves_out_what_overflowed_and_rings_the_last_point_before_the_collapse(opened, page_file):
    page = opened(page_file)
    figure = page.locator("#figure-quality > svg")
    assert figure.locator("circle[r='2.6']").count() == 3 + 2
    assert figure.locator("circle[r='7']").count() == 1
    assert figure.locator("[stroke-dasharray='5 4']").count() == 1
    figure.focus()
    read = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        read.append(page.locator("#readout-quality").inner_text().removeprefix(f"{HOSTILE}: "))
    assert read == ["1 at 0", "2 at 1 · the last before the collapse", "8 at 3"]
    page.keyboard.press("ArrowDown")
    assert page.locator("#readout-quality").inner_text() == "repaired: 4 at 3"


def test_units_of_either_sign_are_told_apart_and_read_in_order(opened, page_file):
    page = opened(page_file)
    figure = page.locator("#figure-units > svg")
    heights = page.evaluate(
        """() => [...document.querySelectorAll("#figure-units [aria-label=dot] > *")]
          .map((mark) => mark.getBoundingClientRect().top)"""
    )
    assert len(heights) == 3 and min(abs(heights[0] - heights[1]), abs(heights[1] - heights[2])) > 20
    assert "y (log scale beyond 0.01)" in " ".join(figure.locator("text").all_text_contents())
    assert page.locator("#figure-units figcaption").inner_text().split() == ["attn", "ffn"]
    figure.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#readout-units").inner_text() == "a: x 0.1 · y −0.02"


def test_every_window_has_a_cell_and_every_size_its_least(opened, page_file):
    page = opened(page_file)
    figure = page.locator("#figure-windows > svg")
    assert figure.locator("[aria-label=rect] rect").count() == 6
    assert figure.locator("[aria-label=dot] circle").count() == 3
    assert page.locator("#readout-windows").inner_text() == "block 1: distance 0.1 · n = 1 · the least of its row"


def test_a_figure_is_saved_as_a_file_that_needs_nothing_else(opened, page_file, tmp_path):
    page = opened(page_file)
    for name in ("quality", "units", "windows"):
        with page.expect_download() as download:
            page.locator(f"#save-{name}").click()
        assert download.value.suggested_filename == f"{name}.svg"
        download.value.save_as(tmp_path / "saved.svg")
        text = (tmp_path / "saved.svg").read_text()
        assert ElementTree.fromstring(text).tag == f"{SVG}svg"
        assert "var(--ink)" not in text and "color-mix" not in text


@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
def test_the_page_stands_in_dark_and_on_a_phone(opened, page_file, options):
    page = opened(page_file, **options)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_without_scripts_the_tables_stand_alone(opened, page_file):
    page = opened(page_file, java_script_enabled=False)
    assert page.locator("figure").first.is_hidden()
    assert page.get_by_role("table").count() == 1
