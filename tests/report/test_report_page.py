"""The report page: self-contained, small, safe with hostile text, and faithful to its inputs."""

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_report import COLLAPSE, make_generation, make_repairs, make_run, make_tasks, measure, renamed

from depthcut.report import Run, write_report
from depthcut.report.page import PageData, unbroken
from depthcut.report.samples import CHARACTERS_AT_MOST
from depthcut.report.tasks import task_results
from depthcut.results import GenerationSample, write_list
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
    def write(run, **changes):
        path = tmp_path / "report.html"
        write_report(path, replace(run, **changes))
        return path.read_bytes().decode()

    return write


def cells_of(page):
    """The texts of every table row, notes left out."""
    rows = re.findall(r"<tr.*?</tr>", page, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in rows]
    return [[html.unescape(" ".join(cell.split())) for cell in row] for row in cells]


def data_of(page):
    """The text of the page's JSON."""
    return Elements(page).scripts[0]


def test_the_answer_comes_first(page_of, run):
    text = " ".join("".join(Elements(page_of(run)).text).split())
    places = [
        text.index(part)
        for part in (
            "8 of 30 blocks removed",
            "−21.1 % parameters",
            "blocks 12–17, 25, 26",
            "×3.38 perplexity",
            "KL to dense 1.211 ± 0.014 nats per token",
            "×1.32 decoding",
            run.command,
            "Before and after",
        )
    ]
    assert places == sorted(places)


def test_the_json_in_the_page_equals_the_inputs(page_of, run):
    run = replace(run, repairs=make_repairs(), measurements=(*run.measurements, *make_tasks()))
    found = PageData.model_validate_json(data_of(page_of(run)))
    assert (found.plan, found.scores, found.measurements) == (run.plan, run.scores, run.measurements)
    assert found.repairs == run.repairs
    assert found.collapse == COLLAPSE


def test_repairs_stand_on_the_page_with_what_they_gave(page_of, run):
    text = " ".join("".join(Elements(page_of(run, repairs=make_repairs())).text).split())
    section = text[text.index("What was done after the removal") :]
    places = [section.index(part) for part in ("refit", "0.975", "0.730", "yes", "lora", "0.810", "no, undone")]
    assert places == sorted(places)
    assert "fitted to lora (lora), 56 × 512 tokens, seed 0; kl 0.975 → 0.730 on 8 × 512 held-out tokens" in text
    cells = [part.strip() for part in Elements(page_of(run, repairs=make_repairs())).text if part.strip()]
    assert cells[cells.index("Step", cells.index("Training loss of lora as a table")) :][:4] == [
        "Step",
        "Loss",
        "10",
        "3.90",
    ]


def test_tasks_stand_in_a_table_of_their_own_with_the_error_of_the_pair(page_of, run):
    rows = cells_of(page_of(run, measurements=(*run.measurements, *make_tasks())))
    before = [row[0] for row in rows[: next(i for i, row in enumerate(rows) if row[1:] and row[1] == "dense") + 9]]
    assert not any("arc_easy" in label for label in before)
    assert ["arc_easy acc", "58.0 ± 2.5 %", "44.0 ± 2.4 %", "−14.0 ± 1.8 points", "57.6 ± 6.0 %"] in rows
    assert ["wikitext word_perplexity", "31.400 ± 0.025", "96.200 ± 0.024", "+64.800 ± 0.018", "–"] in rows
    assert ["generation, greedy arithmetic", "62.0 ± 2.5 %", "5.0 ± 2.4 %", "−57.0 ± 1.8 points", "–"] in rows


def test_the_figure_of_the_tasks_shows_shares_and_one_metric_of_right_answers_a_task():
    results = task_results(make_tasks())
    assert {(result.task, result.value) for result in results if result.model == "pruned"} == {
        ("arc_easy acc_norm", 0.42),
        ("piqa acc_norm", 0.61),
        ("average accuracy", 0.515),
        ("generation, greedy arithmetic", 0.05),
    }


def test_what_the_tasks_retain_is_told_beside_the_cost(page_of, run):
    text = " ".join("".join(Elements(page_of(run, measurements=(*run.measurements, *make_tasks()))).text).split())
    assert "60.0 ± 6.0 % of the tasks' accuracy retained" in text.split("Before and after")[0]


def test_a_collapse_is_told_where_there_is_one(page_of, run):
    assert f"collapses after step {COLLAPSE}" in page_of(run)
    even = [step.model_copy(update={"objective": 0.05 * order}) for order, step in enumerate(run.plan.steps)]
    page = page_of(run, plan=run.plan.model_copy(update={"steps": tuple(even)}))
    assert "collapses after" not in page
    assert json.loads(data_of(page))["collapse"] is None


def test_generated_texts_stand_side_by_side_split_where_they_part(page_of, run):
    page = page_of(run, generation=make_generation())
    assert "<dd> Paris, <mark>which lies on the Seine.</mark></dd>" in page
    assert "<dd> Paris, <mark>Paris, Paris, Paris,</mark></dd>" in page
    assert "greedy: the same for 8 characters" in page
    assert "Write &lt;b&gt;bold&lt;/b&gt; &amp; plain" in page
    assert "seed 0: different from the start" in page
    assert "generation-title" not in page_of(run)


def test_a_long_text_is_cut_on_the_page(page_of, run):
    sample = GenerationSample(prompt="p", dense="a" * 2_000_000, pruned="b" * 5000)
    page = page_of(run, generation=[sample])
    assert len(page.encode()) < 1_000_000
    assert f"{'b' * CHARACTERS_AT_MOST} […]" in page


def test_the_command_of_another_cut_repairs_as_the_run_did(run):
    assert run.apply_command == (
        "depthcut apply HuggingFaceTB/SmolLM2-135M plan.json -o OUT --revision 93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
    )
    repaired = replace(run, repairs=make_repairs("some text"))
    assert repaired.apply_command.endswith("--repair 'refit+some text' --repair-text 'some text' --repair-samples 64")
    as_asked = replace(repaired, recipe="repair: refit+lora,rank=4\n")
    assert "--repair refit+lora,rank=4 " in as_asked.apply_command


def test_a_run_is_read_back_from_its_directory(tmp_path, run):
    run.plan.write(tmp_path / "plan.json")
    run.scores.write(tmp_path / "scores.json")
    write_list(run.measurements, tmp_path / "results.json")
    plain = Run.from_directory(tmp_path)
    assert (plain.plan, plain.scores, tuple(plain.measurements)) == (run.plan, run.scores, run.measurements)
    assert (plain.repairs, plain.generation, plain.recipe, plain.name) == ((), (), "", tmp_path.name)
    assert plain.command == f"depthcut apply HuggingFaceTB/SmolLM2-135M {tmp_path}/plan.json -o OUT"

    write_list(list(make_repairs()), tmp_path / "repair.json")
    write_list(list(make_generation()), tmp_path / "generation.json")
    (tmp_path / "recipe.yaml").write_text("model: smollm2\n")
    full = Run.from_directory(tmp_path)
    assert (tuple(full.repairs), tuple(full.generation)) == (make_repairs(), make_generation())
    assert full.command == f"depthcut run {tmp_path}/recipe.yaml -o OUT"


def test_a_directory_without_artefacts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*plan\.json: No such file"):
        Run.from_directory(tmp_path)


def test_hostile_text_cannot_leave_its_place(page_of, run):
    page = page_of(renamed(run, HOSTILE), repairs=make_repairs(HOSTILE))
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "<" not in data_of(page)
    assert json.loads(data_of(page))["plan"]["model"]["source"] == HOSTILE
    plain = Elements(page_of(renamed(run, "plain"), repairs=make_repairs("plain")))
    assert [tag for tag, _ in Elements(page).elements] == [tag for tag, _ in plain.elements]


def test_only_the_pages_own_scripts_may_run_and_nothing_may_connect(page_of, run):
    elements = Elements(page_of(renamed(run, HOSTILE)))
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


def test_the_page_refers_to_no_resource_outside_itself(page_of, run):
    page = page_of(run)
    for _tag, attributes in Elements(page).elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    own_text = page
    for script in Elements(page).scripts[1:3]:  # the vendored libraries
        own_text = own_text.replace(script, "")
    assert not re.search(r"https?://|@import|url\(|//cdn", own_text)


def test_vendored_libraries_carry_their_licences(page_of, run):
    d3, plot = Elements(page_of(run)).scripts[1:3]
    assert "Mike Bostock" in d3[:2000]
    assert "Permission to use, copy, modify" in d3[:2000]
    assert "Observable, Inc." in plot[:2000]
    assert "Permission to use, copy, modify" in plot[:2000]


def test_the_page_of_a_very_deep_model_stays_under_a_megabyte(page_of):
    assert len(page_of(make_run(126, tuple(range(60, 90)))).encode()) < 1_000_000


def test_numbers_stand_in_tables_too(page_of, run):
    cells = cells_of(page_of(run))
    assert any(row[0] == "Parameters" and " ".join(row[1:]) == "134.5 M 106.2 M −21.1 %" for row in cells)
    assert sum(row[0] in map(str, range(30)) and "±" in row[-1] for row in cells) == 30  # blocks
    assert sum(bool(re.fullmatch(r"\d+\.(attn|ffn)", row[0])) for row in cells) == 60  # sublayers
    assert ["30", "0–29"] in [row[:2] for row in cells]  # windows


def test_a_page_without_scores_measurements_or_objective_has_no_empty_parts(page_of, run):
    steps = tuple(step.model_copy(update={"objective": None}) for step in run.plan.steps)
    plan = run.plan.model_copy(update={"calibration": None, "objective": None, "steps": steps})
    page = page_of(replace(run, plan=plan, scores=None, measurements=()))
    ids = {attributes["id"] for _, attributes in Elements(page).elements if "id" in attributes}
    assert {"map", "path-title", "provenance-title"} <= ids
    assert not {"before-after", "path", "angular"} & ids
    assert json.loads(data_of(page))["scores"] is None


def test_a_number_that_overflowed_leaves_valid_json(page_of, run):
    steps = (run.plan.steps[0].model_copy(update={"objective": math.inf}), *run.plan.steps[1:])
    page = page_of(replace(run, plan=run.plan.model_copy(update={"steps": steps})))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(data_of(page), parse_constant=refuse)["plan"]["steps"][0]["objective"] is None
    assert "∞" in page


def test_a_plan_without_sizes_is_refused_before_anything_is_written(tmp_path, run):
    path = tmp_path / "report.html"
    with pytest.raises(InputError, match=r"removes 15\.attn but does not hold its size.*unit_sizes"):
        write_report(path, replace(run, plan=run.plan.model_copy(update={"unit_sizes": {}})))
    assert not path.exists()


def test_a_speed_up_measured_in_pairs_answers_alone(page_of, run):
    pairs = [measure(f"decode_{kind}", "pruned", value) for kind, value in (("speedup", 1.27), ("ideal_speedup", 1.3))]
    text = " ".join("".join(Elements(page_of(run, measurements=[*run.measurements, *pairs])).text).split())
    assert "×1.27 decoding ideal ×1.30 reading a prompt ×1.32 KV cache −26.7 %" in text
    plain = " ".join("".join(Elements(page_of(run)).text).split())
    assert "×1.32 decoding 19.80 ± 0.20 → 26.10 ± 0.30 tokens/s reading a prompt ×1.32" in plain


def test_texts_and_settings_are_notes_that_the_rows_refer_to(page_of, run):
    page = page_of(run)
    assert "Perplexity<sup>1</sup>" in page
    assert "KL to dense, nats per token<sup>1</sup>" in page
    assert "Decoding, tokens/s<sup>3</sup>" in page
    notes = re.findall(r"<li>(.*)</li>", page)
    assert notes == ["WikiText-2 test, 32 × 512 tokens", "512 tokens", "after 512 tokens"]


def test_further_variants_are_told_beside_the_cost(page_of, run):
    healed = run.measurements[4].model_copy(update={"model": "pruned, healed", "value": 43.2})
    text = "".join(Elements(page_of(run, measurements=[*run.measurements, healed])).text)
    assert "pruned, healed: 43.20 ± 0.31" in text


def test_a_number_breaks_before_its_standard_error_only():
    assert unbroken("(2.00 ± 0.03) M") == "(2.00 ±\xa00.03)\xa0M"
