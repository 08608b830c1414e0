"""The pages in headless Chromium: what a reader moves, points at and takes away, and what no text on them can do."""

import json
from dataclasses import replace

import pytest
from example_report import COLLAPSE, make_generation, make_repairs, make_run, make_tasks, measure, renamed

from depthcut.report import write_comparison, write_report
from depthcut.types import Plan

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(1)</script><svg onload=alert(1)>"
PHONE = {"width": 390, "height": 844}


def full_run():
    run = make_run()
    return replace(
        run,
        measurements=(*run.measurements, *make_tasks()),
        repairs=make_repairs(),
        generation=make_generation(),
        recipe="repair: refit\n",
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, full_run())
    return path


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "runs.html"
    run = full_run()
    write_comparison(path, [run, replace(run, name="shorter", plan=run.plan.applying(4))])
    return path


def slider(page):
    return page.get_by_role("slider", name="Steps")


def removed_cells(page):
    """The cells of the map that are marked as removed, as `block step`."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#map [role=row]")].flatMap((row) =>
          [...row.querySelectorAll("[role=gridcell]")].map((cell, block) => ({ cell, block })))
          .filter(({ cell }) => cell.classList.contains("removed"))
          .map(({ cell, block }) => `${block} ${cell.textContent}`)"""
    )


def numbers(page):
    return {name: page.locator(f"#steps-{name}").inner_text() for name in ("removed", "parameters", "kv", "objective")}


def test_the_page_opens_at_the_model_it_is_about(opened, report):
    page = opened(report)
    assert slider(page).input_value() == "8"
    assert page.locator("#steps-count").inner_text() == "8 of 14 steps, this model"
    assert numbers(page) == {
        "removed": "8 of 30 blocks",
        "parameters": "106.2 M (−21.1 %)",
        "kv": "16.5 KiB (−26.7 %)",
        "objective": "0.16",
    }
    assert sorted(removed_cells(page)) == sorted(
        f"{block} {step}" for step, block in enumerate((15, 14, 13, 16, 25, 12, 17, 26), start=1) for _ in "af"
    )


def test_the_slider_moves_map_numbers_curve_and_command_by_keyboard(opened, report):
    page = opened(report)
    slider(page).focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert slider(page).get_attribute("aria-valuetext") == (
        "3 of 14 steps: 3 of 30 blocks removed, parameters 123.9 M (−7.9 %), KV cache 20.25 KiB (−10.0 %), js 0.06"
    )
    assert sorted(removed_cells(page)) == ["13 3", "13 3", "14 2", "14 2", "15 1", "15 1"]
    assert numbers(page) == {
        "removed": "3 of 30 blocks",
        "parameters": "123.9 M (−7.9 %)",
        "kv": "20.25 KiB (−10.0 %)",
        "objective": "0.06",
    }
    page.wait_for_function("document.querySelector('#path').textContent.includes('3 steps')")
    assert page.locator("#path-readout").inner_text().startswith("step 3: 13.attn, 13.ffn · js 0.06 · 7.9 %")
    assert "blocks 13–15" in page.locator("#angular-readout").inner_text()
    assert page.locator("#steps-command").inner_text() == (
        "depthcut apply HuggingFaceTB/SmolLM2-135M plan.json -o OUT --revision "
        "93efa2f097d58c2a74874c7e644dbc9b0cee75a2 --repair refit --repair-text lora --repair-samples 64 --steps 3"
    )
    page.keyboard.press("Home")
    assert removed_cells(page) == []
    assert numbers(page) == {
        "removed": "nothing",
        "parameters": "134.5 M (unchanged)",
        "kv": "22.5 KiB (unchanged)",
        "objective": "–",
    }


def test_beyond_the_collapse_the_page_says_so(opened, report):
    page = opened(report)
    slider(page).fill(str(COLLAPSE))
    assert numbers(page)["objective"] == "0.22"
    slider(page).fill(str(COLLAPSE + 1))
    assert numbers(page)["objective"] == "0.36, beyond the collapse"
    assert "collapse" in page.locator("#path text").all_text_contents()


@pytest.mark.parametrize("count", [0, 5, 14])
def test_the_plan_handed_out_is_the_path_with_so_many_steps_applied(opened, report, tmp_path, count):
    page = opened(report)
    slider(page).fill(str(count))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download plan.json of this many steps").click()
    assert download.value.suggested_filename == "plan.json"
    download.value.save_as(tmp_path / "plan.json")
    assert Plan.from_file(tmp_path / "plan.json") == make_run().plan.applying(count)


def test_pointing_at_a_cell_tells_its_unit_and_arrow_keys_move_on(opened, report):
    page = opened(report)
    readout = page.locator("#map-readout")
    assert readout.inner_text().startswith("Point at a cell")
    cells = page.get_by_role("gridcell")
    cells.nth(15).hover()
    assert readout.inner_text().startswith("15.attn · block-influence 0.033")
    assert "885.3 M" not in readout.inner_text()
    assert "0.8853 M parameters · 768 B KV per token · removed in step 1" in readout.inner_text()
    cells.nth(15).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert readout.inner_text().startswith("16.ffn")
    assert page.locator(":focus").get_attribute("aria-label") == readout.inner_text()
    cells.nth(28).hover()
    assert "step 9 of the path, kept here" in readout.inner_text()


def test_the_map_is_coloured_by_any_metric_also_by_the_order_of_removal(opened, report):
    page = opened(report)
    select = page.get_by_role("combobox", name="Colour by")
    names = [name.strip() for name in select.locator("option").all_inner_texts()]
    scores = [f"{scores.metric}" for scores in make_run().scores.scores]
    assert len(names) == len(scores) + 3
    assert {"order of removal", "parameters", "KV bytes per token"} <= set(names)
    seen = set()
    for name in names:
        select.select_option(label=name)
        fills = page.locator("#map .cell").evaluate_all("cells => cells.map(cell => cell.style.cssText).join()")
        assert "color-mix" in fills
        seen.add((fills, page.locator("#map-high").inner_text()))
    assert len(seen) == len(names)
    assert page.locator("#map-high").inner_text() == "768 B"


def test_a_click_on_the_curve_moves_the_slider(opened, report):
    page = opened(report)
    box = page.locator("#path svg").bounding_box()
    page.locator("#path svg").click(position={"x": box["width"] - 30, "y": box["height"] / 2})
    assert slider(page).input_value() == "14"
    page.locator("#path svg").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#path-readout").inner_text().startswith("step 2:")
    page.keyboard.press("Enter")
    assert slider(page).input_value() == "2"


def test_the_heat_map_outlines_the_removed_windows_and_reads_any_other(opened, report):
    page = opened(report)
    readout = page.locator("#angular-readout")
    assert readout.inner_text().startswith("blocks 12–17: distance")
    page.locator("#angular svg").focus()
    page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    first = int(readout.inner_text().removeprefix("blocks ").split("–")[0])
    distance = make_run().scores.angular[first][3]
    assert readout.inner_text().startswith(f"blocks {first}–{first + 3}: distance {distance:.4g}".rstrip("0"))


def test_the_tasks_show_each_model_with_its_interval(opened, report):
    page = opened(report)
    assert page.locator("#tasks figcaption span").all_inner_texts() == ["dense", "pruned"]
    page.locator("#tasks svg[tabindex]").focus()
    page.keyboard.press("ArrowDown")
    assert (
        page.locator("#tasks-readout").inner_text()
        == "arc_easy acc_norm · dense 54.0 % ± 2.5 % · pruned 42.0 % ± 2.4 %"
    )
    # Every mark stands within the chart.
    box = page.locator("#tasks svg[tabindex]").bounding_box()
    for mark in page.locator("#tasks svg[tabindex] [aria-label=dot] path").all():
        place = mark.bounding_box()
        assert box["x"] < place["x"] < box["x"] + box["width"]


def test_tables_unfold_and_hold_the_numbers(opened, report):
    page = opened(report)
    page.get_by_text("The path as a table").click()
    rows = page.get_by_role("region", name="The path, table").get_by_role("row").all_inner_texts()
    assert [row.split("\t") for row in rows][1:3] == [
        ["1", "15.attn, 15.ffn", "0.02000", "−2.6 %", "21.8 KiB", "yes"],
        ["2", "14.attn, 14.ffn", "0.04000", "−5.3 %", "21.0 KiB", "yes"],
    ]
    assert rows[COLLAPSE].endswith("no, last before the collapse")


def test_hostile_text_runs_nothing_and_adds_no_element(opened, tmp_path):
    run = full_run()
    write_report(tmp_path / "plain.html", renamed(run, "plain"))
    write_report(tmp_path / "hostile.html", renamed(run, HOSTILE))
    pages = [opened(tmp_path / f"{name}.html") for name in ("plain", "hostile")]
    for page in pages:
        slider(page).fill("3")
        for cell in page.get_by_role("gridcell").all()[:3]:
            cell.hover()
        page.locator("#tasks svg[tabindex]").focus()
        page.keyboard.press("ArrowDown")
    counts = [
        page.evaluate("document.querySelectorAll('img, script, main [onerror], [onload]').length") for page in pages
    ]
    assert counts[0] == counts[1]
    assert pages[1].locator("dd", has_text=HOSTILE).first.inner_text().count("<img src=x") >= 1
    assert HOSTILE in pages[1].locator("#steps-command").inner_text()


def test_hostile_text_runs_nothing_beside_other_runs(opened, tmp_path):
    run = full_run()
    write_comparison(tmp_path / "runs.html", [run, renamed(replace(run, plan=run.plan.applying(3)), HOSTILE)])
    page = opened(tmp_path / "runs.html")
    page.locator("#path-0 svg").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("rowheader", name=HOSTILE, exact=True).count() == 1
    assert page.evaluate("document.querySelectorAll('img, main script, [onerror], [onload]').length") == 0


def test_the_policy_stops_a_script_that_got_in(browser, report, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        report.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'in'</script></main>")
    )
    page = browser.new_page()
    page.goto(broken.as_uri())
    assert page.title() != "in"
    page.close()


def test_without_scripts_the_tables_remain(opened, report):
    page = opened(report, java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert page.get_by_role("region", name="Before and after, table").is_visible()
    assert not page.locator("#steps").is_visible()


@pytest.mark.parametrize("page_name", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_text_can_be_read(request, opened, page_name, scheme):
    page = opened(request.getfixturevalue(page_name), viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for selector in ("body", ".caption p", ".notes"):
        assert contrast(page, selector) >= 4.5


def contrast(page, selector):
    """The contrast of text with the page behind it by WCAG 2."""
    colours = page.evaluate(
        """(selector) => [getComputedStyle(document.querySelector(selector)).color,
          getComputedStyle(document.documentElement).backgroundColor].map((text) => text.match(/\\d+/g).map(Number))""",
        selector,
    )

    def luminance(colour):
        parts = [value / 255 for value in colour[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_paper_shows_every_table_and_no_control(opened, report):
    page = opened(report, color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert not slider(page).is_visible()
    assert not page.get_by_role("combobox").is_visible()
    assert page.get_by_role("region", name="The path, table").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_every_control_has_a_name(opened, report):
    page = opened(report)
    for role, name in (
        ("slider", "Steps"),
        ("combobox", "Colour by"),
        ("grid", "Units of the model by block-influence"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("main [tabindex='0'], main select, main input, main button")]
          .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_runs_stand_side_by_side_with_their_curves(opened, comparison):
    page = opened(comparison)
    texts = page.locator("#path-0 text").all_text_contents()
    assert {"smaller", "shorter"} <= set(texts)
    readout = page.locator("#path-0-readout")
    page.locator("#path-0 svg").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert readout.inner_text() == "smaller: step 4 · js 0.08 · 10.5 % of the parameters removed"
    page.keyboard.press("ArrowDown")
    assert readout.inner_text() == "shorter: step 4 · js 0.08 · 10.5 % of the parameters removed · the run's model"
    assert page.locator("#tasks figcaption span").all_inner_texts() == ["dense", "smaller", "shorter"]


def test_a_page_with_little_in_it_is_quiet_too(opened, tmp_path):
    run = make_run()
    steps = tuple(step.model_copy(update={"objective": None}) for step in run.plan.steps)
    plan = run.plan.model_copy(update={"calibration": None, "objective": None, "steps": steps})
    write_report(tmp_path / "report.html", replace(run, plan=plan, scores=None, measurements=()))
    page = opened(tmp_path / "report.html")
    slider(page).fill("3")
    assert page.locator("#steps-parameters").inner_text() == "10.62 M removed"
    write_report(tmp_path / "empty.html", replace(run, plan=plan.model_copy(update={"steps": ()}), scores=None))
    page = opened(tmp_path / "empty.html")
    assert page.locator("#steps").count() == 0
    assert page.get_by_role("gridcell").count() == 60
    assert json.loads(page.locator("#data").text_content())["plan"]["steps"] == []


MEMORY = {1024: (0.5, 0.4), 8192: (1.5, 1.2), 32_768: (5.0, 3.8)}
"""GiB of the dense and of the pruned model by context."""


@pytest.fixture(scope="module")
def report_of_memory(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    run = make_run()
    rows = [
        measure("decoding_bytes", model, gib * 2**30, unit="bytes", data=f"{context} tokens of context")
        for context, both in MEMORY.items()
        for model, gib in zip(("dense", "pruned"), both, strict=True)
    ]
    write_report(path, replace(run, measurements=(*run.measurements, *rows)))
    return path


def test_memory_by_context_is_drawn_and_read_by_keys(opened, report_of_memory):
    page = opened(report_of_memory)
    readout = page.locator("#memory-readout")
    assert readout.inner_text() == "32,768 tokens · pruned 3.8 GiB · −24.0 %"
    lines = page.locator("#memory svg [aria-label=line] path")
    assert lines.count() == 2
    page.locator("#memory svg").focus()
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() == "1,024 tokens · dense 512 MiB"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert readout.inner_text() == "8,192 tokens · pruned 1.2 GiB · −20.0 %"
    table = page.get_by_role("region", name="Memory by context, table")
    page.get_by_text("Memory by context as a table").click()
    assert "32,768\t5,120.0\t3,891.2" in table.inner_text()


def test_a_report_of_one_context_draws_no_memory(opened, report):
    assert opened(report).locator("#memory").count() == 0
