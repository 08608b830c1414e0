"""The report page: self-contained, small, safe with hostile text, and faithful to its inputs."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_report import make_case, make_repairs, measure

from depthcut.report import write_report
from depthcut.report.page import PageData, unbroken
from depthcut.types import InputError

HOSTILE = "</script><script>alert(1)</script>"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts by their order."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.scripts = []
        self.text = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text.append(data)


@pytest.fixture
def page_of(tmp_path):
    def write(case, **changes):
        path = tmp_path / "report.html"
        write_report(path, **{**case.page_arguments(), **changes})
        return path.read_bytes().decode()

    return write


def data_of(page):
    """The text of the page's JSON."""
    return Elements(page).scripts[0]


def test_the_answer_comes_first(page_of, case):
    text = " ".join("".join(Elements(page_of(case)).text).split())
    places = [
        text.index(part)
        for part in (
            "8 of 30 blocks removed",
            "−21.1 % parameters",
            "blocks 12–17, 25, 26",
            "×3.38 perplexity",
            "KL to dense 1.211 ± 0.014 nats per token",
            "×1.32 decoding",
            case.command,
            "Before and after",
        )
    ]
    assert places == sorted(places)


def test_the_json_in_the_page_equals_the_inputs(page_of, case):
    expected = PageData.model_validate({**case.page_arguments(), "comparisons": (case.plan.applying(3),)})
    page = page_of(case, comparisons=[case.plan.applying(3)])
    assert PageData.model_validate_json(data_of(page)) == expected


def test_repairs_stand_on_the_page_with_what_they_gave(page_of, case):
    text = " ".join("".join(Elements(page_of(case, repairs=make_repairs())).text).split())
    section = text[text.index("What was done after the removal") :]
    places = [section.index(part) for part in ("refit", "0.975", "0.730", "yes", "lora", "0.810", "no, undone")]
    assert places == sorted(places)
    assert "fitted to lora (lora), 56 × 512 tokens, seed 0; kl 0.975 → 0.730 on 8 × 512 held-out tokens" in text
    cells = [part.strip() for part in Elements(page_of(case, repairs=make_repairs())).text if part.strip()]
    assert cells[cells.index("Step", cells.index("Training loss of lora as a table")) :][:4] == [
        "Step",
        "Loss",
        "10",
        "3.90",
    ]


def test_hostile_text_cannot_leave_its_place(page_of, case):
    page = page_of(case.renamed(HOSTILE), repairs=make_repairs(HOSTILE))
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "<" not in data_of(page)
    assert json.loads(data_of(page))["plan"]["model"]["source"] == HOSTILE
    plain = Elements(page_of(case.renamed("plain"), repairs=make_repairs("plain")))
    assert [tag for tag, _ in Elements(page).elements] == [tag for tag, _ in plain.elements]


def test_only_the_pages_own_scripts_may_run_and_nothing_may_connect(page_of, case):
    elements = Elements(page_of(case.renamed(HOSTILE)))
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in elements.scripts[1:]
    ]
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == hashes
    assert len(hashes) == 3


def test_the_page_refers_to_no_resource_outside_itself(page_of, case):
    page = page_of(case)
    for _tag, attributes in Elements(page).elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    own_text = page
    for script in Elements(page).scripts[1:3]:  # the vendored libraries
        own_text = own_text.replace(script, "")
    assert not re.search(r"https?://|@import|url\(|//cdn", own_text)


def test_vendored_libraries_carry_their_licences(page_of, case):
    d3, plot = Elements(page_of(case)).scripts[1:3]
    assert "Mike Bostock" in d3[:2000]
    assert "Permission to use, copy, modify" in d3[:2000]
    assert "Observable, Inc." in plot[:2000]
    assert "Permission to use, copy, modify" in plot[:2000]


def test_the_page_of_a_very_deep_model_stays_under_a_megabyte(page_of):
    assert len(page_of(make_case(126, tuple(range(60, 90)))).encode()) < 1_000_000


def test_numbers_stand_in_tables_too(page_of, case):
    rows = re.findall(r"<tr.*?</tr>", page_of(case), flags=re.DOTALL)
    cells = [[" ".join(cell.split()) for cell in re.findall(r"<t[hd][^>]*>([^<]*)", row)] for row in rows]
    assert any(row[0] == "Parameters" and " ".join(row[1:]) == "134.5 M 106.2 M −21.1 %" for row in cells)
    assert sum(row[0] in map(str, range(30)) and "±" in row[-1] for row in cells) == 30  # blocks
    assert sum(bool(re.fullmatch(r"\d+\.(attn|ffn)", row[0])) for row in cells) == 60  # sublayers
    assert ["30", "0–29"] in [row[:2] for row in cells]  # windows


def test_a_page_without_scores_measurements_or_objective_has_no_empty_parts(page_of, case):
    steps = tuple(step.model_copy(update={"objective": None}) for step in case.plan.steps)
    plan = case.plan.model_copy(update={"calibration": None, "objective": None, "steps": steps})
    page = page_of(replace(case, plan=plan, scores=None, measurements=()))
    ids = {attributes["id"] for _, attributes in Elements(page).elements if "id" in attributes}
    assert {"map", "path-title", "provenance-title"} <= ids
    assert not {"before-after", "path", "angular"} & ids
    assert json.loads(data_of(page))["scores"] is None


def test_a_number_that_overflowed_leaves_valid_json(page_of, case):
    steps = (case.plan.steps[0].model_copy(update={"objective": math.inf}), *case.plan.steps[1:])
    page = page_of(replace(case, plan=case.plan.model_copy(update={"steps": steps})))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(data_of(page), parse_constant=refuse)["plan"]["steps"][0]["objective"] is None
    assert "∞" in page


def test_a_plan_without_sizes_is_refused_before_anything_is_written(tmp_path, case):
    path = tmp_path / "report.html"
    with pytest.raises(InputError, match=r"removes 15\.attn but does not hold its size.*unit_sizes"):
        write_report(path, **{**case.page_arguments(), "unit_sizes": {}})
    assert not path.exists()


def test_a_speed_up_measured_in_pairs_answers_before_the_ratio_of_two_speeds(page_of, case):
    speed_up = measure("decode_speedup", "pruned", 1.27, unit="ratio")
    text = " ".join("".join(Elements(page_of(case, measurements=[*case.measurements, speed_up])).text).split())
    assert "×1.27 decoding 19.80 ± 0.20 → 26.10 ± 0.30 tokens/s" in text


def test_texts_and_settings_are_notes_that_the_rows_refer_to(page_of, case):
    page = page_of(case)
    assert "Perplexity<sup>1</sup>" in page
    assert "KL to dense, nats per token<sup>1</sup>" in page
    assert "Decoding, tokens/s<sup>3</sup>" in page
    notes = re.findall(r"<li>(.*)</li>", page)
    assert notes == ["WikiText-2 test, 32 × 512 tokens", "512 tokens", "after 512 tokens"]


def test_further_variants_are_told_beside_the_cost(page_of, case):
    healed = case.measurements[4].model_copy(update={"model": "pruned, healed", "value": 43.2})
    text = "".join(Elements(page_of(case, measurements=[*case.measurements, healed])).text)
    assert "pruned, healed: 43.20 ± 0.31" in text


def test_a_number_breaks_before_its_standard_error_only():
    assert unbroken("(2.00 ± 0.03) M") == "(2.00 ±\xa00.03)\xa0M"
