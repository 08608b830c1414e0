"""What pages say is so: numbers are those that were measured, and the reference knows every command and name."""

import importlib.util
import re

import pytest
from code_blocks import DOCS, ROOT

from depthcut.evaluation.engines import ENGINES
from depthcut.methods.problem import SEARCHES
from depthcut.run.recipe import Recipe

MEASURED = [ROOT / "README.md", *(DOCS / name for name in ("methods.md", "studies.md", "evaluation.md"))]
QUOTING = ["choose-a-method.md", "kv-cache.md", "repair.md", "limits.md", "engines.md"]


@pytest.fixture(scope="module")
def reference():
    file = DOCS / "reference" / "write_reference.py"
    spec = importlib.util.spec_from_file_location("write_reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", QUOTING)
def test_numbers_in_the_guide_are_rows_of_the_page_where_they_were_measured(name):
    measured = {line for page in MEASURED for line in page.read_text(encoding="utf-8").splitlines()}
    lines = (DOCS / "guide" / name).read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    quoted = [row for row in rows if sum(bool(re.search(r"\d", cell)) for cell in row.split("|")) >= 2]
    assert quoted
    for line in quoted:
        assert line in measured, f"{name} quotes a row that no page measured: {line}"


def test_the_command_reference_has_every_command_option_and_default(reference):
    text = reference.on_page_markdown("before\n\n<!-- commands -->\n\nafter")
    assert text.startswith("before\n\n## depthcut ") and text.endswith("after")
    for command in ("prune", "run", "score", "apply", "eval", "export", "report", "ls", "validate", "schema"):
        assert f"\n## depthcut {command}\n" in text
    for command in ("sweep", "compare", "tradeoff", "inspect"):
        assert f"\n## depthcut study {command}\n" in text
    section = text.split("\n## depthcut prune\n")[1].split("\n## ")[0]
    for field in Recipe.model_fields.keys() - {"model", "tasks"}:
        assert f"`--{field.replace('_', '-')}`" in section, field
    assert "| `--calibration-samples` | `16` | Sequences of calibration text. |" in section
    assert "depthcut prune MODEL --output-dir OUT" in section


def test_the_names_are_those_of_the_registries(reference):
    text = reference.on_page_markdown("<!-- names -->")
    for entry in SEARCHES:
        assert f"| `{entry.name}` | {entry.summary} | {entry.source} |" in text
    for name in ("block-influence", "js-finercut-code", "task-error", "refit", "nemotron-nas", "wikitext", "smollm2"):
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md"])
def test_links_beside_the_site_lead_to_files(name):
    """Those of the site itself are checked when it is built."""
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)] == []


def test_the_map_for_newcomers_is_short_and_names_what_is_there():
    lines = (ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
    assert len(named) > 10 and all((ROOT / "src" / "depthcut" / name).exists() for name in named)


def test_every_engine_of_eval_stands_in_the_guide():
    text = (DOCS / "guide" / "measure.md").read_text(encoding="utf-8")
    assert all(f"--engine {name}" in text for name in ENGINES if name != "transformers")
