"""The reproduction page: every claim has its row, every number of ours comes from a file, every verdict from a rule."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import frontier  # noqa: E402
import reproduction  # noqa: E402
import results  # noqa: E402
import run_recipes  # noqa: E402
from bench import BENCHMARKS  # noqa: E402

CLAIMS = reproduction.load_claims()
MEASURED = [claim for claim in CLAIMS if not claim.untestable]
PAGE = reproduction.PAGE.read_text(encoding="utf-8")
NAMES_WITH_DIGITS = re.compile(r"SmolLM2-135M|135M|7B|C4|WikiText-2|int8|NF4|rank 16|\bat 4\b|\bat 8\b")


def test_the_page_is_what_its_files_say():
    assert reproduction.page(CLAIMS) == PAGE, "run make reproduction"


def test_the_recipes_page_is_what_its_files_say():
    times = json.loads(run_recipes.TIMES.read_text())
    page = run_recipes.page(run_recipes.packaged_recipes(), times)
    assert page == run_recipes.PAGE.read_text(), "run make recipes"


def test_the_frontier_is_what_its_files_say():
    for file, text in frontier.pages().items():
        assert file.read_text(encoding="utf-8") == text, "run python benchmarks/frontier.py --page"


def test_every_claim_has_one_row_without_an_empty_cell():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| **{claim.id}** ")]
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5 and all(cells), row
        assert cells[3] in (reproduction.AGREES, reproduction.DIFFERS, reproduction.UNTESTABLE)


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.id for claim in CLAIMS])
def test_a_claim_is_measured_or_says_why_not(claim):
    if claim.untestable:
        assert not (claim.ran or claim.values or claim.saw or claim.agrees)
        return
    assert claim.ran and claim.saw and claim.agrees and claim.results
    for name in claim.results:
        result = results.read(name)
        assert result["command"].split()[0] in ("depthcut", "python") and result["model"] and result["machine"]["cpu"]
    named = set(re.findall(r"{(\w+)[:}]", claim.saw)) | set(re.findall(r"[a-z]\w*", claim.agrees)) - {"and"}
    assert named == claim.values.keys()
    assert not claim.figure or (reproduction.FIGURES / claim.figure).is_file()


@pytest.mark.parametrize("claim", MEASURED, ids=[claim.id for claim in MEASURED])
def test_no_number_of_ours_is_written_by_hand(claim):
    by_hand = NAMES_WITH_DIGITS.sub("", re.sub(r"{[^}]*}", "", claim.saw))
    assert not re.search(r"\d", by_hand), by_hand


def test_commands_name_no_folder_of_one_machine():
    for file in results.FOLDER.glob("*.json"):
        assert not re.search(r"/(tmp|work|home)/", file.read_text()), file.name


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("a < b", True), ("a > b", False), ("2 * a >= b and b <= 2", True), ("a + b < 3", False), ("a + b <= 3", True)],
)
def test_a_rule_compares_numbers(rule, expected):
    assert reproduction.holds(rule, {"a": 1.0, "b": 2.0}) is expected


def test_every_table_and_list_is_kept_under_names_of_its_own():
    study = {
        "study": "sweep",
        "tables": [
            {
                "name": "sweep",
                "columns": ["Method", "Repair", "Units removed", "KL", "± KL"],
                "rows": [["uidl", "none", 2, 0.5, 0.1], ["uidl", "none", 4, 0.7, None]],
            }
        ],
    }
    assert results.flatten(study) == {"sweep / uidl / none / 2 / KL": 0.5, "sweep / uidl / none / 4 / KL": 0.7}
    rows = [{"removed": 4, "repair": "bias", "kept": True, "held-out KL": [0.4, 0.5]}]
    assert results.flatten(rows) == {
        "4 / bias / removed": 4.0,
        "4 / bias / held-out KL before": 0.4,
        "4 / bias / held-out KL after": 0.5,
    }
    measured = [{"name": "perplexity", "model": "dense", "value": 2.0, "data": "c4.gz,join=lines (x)", "stderr": None}]
    assert results.flatten(measured) == {"perplexity / dense / c4.gz": 2.0}


def test_every_benchmark_is_in_the_bench_and_the_readme():
    benchmarks = {file.stem for file in (ROOT / "benchmarks").glob("*.py")} - {"bench", "machine", "results"}
    # The frontier takes hours; the last two want a finished run.
    pages = {"planning", "reproduction", "run_recipes", "frontier", "repair_cost", "draft_llama_cpp"}
    assert {benchmark.name for benchmark in BENCHMARKS} == benchmarks - pages
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert [name for name in benchmarks - {"reproduction", "run_recipes"} if f"`{name}.py`" not in readme] == []
