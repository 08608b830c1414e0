"""The house itself: commands that messages and pages name are there, and files and classes stay small."""

import ast
import re
import tomllib
from pathlib import Path

import typer

from depthcut.cli import app

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("*.md")]
LINES_OF_A_FILE, LINES_OF_A_CLASS = 400, 250
LIMIT_OF_FILES = 15
"""That a reader opens to follow one run."""


def test_every_command_line_that_is_named_in_backticks_exists():
    commands = typer.main.get_command(app).commands
    named = {
        (path.name, verb)
        for path in [*SOURCES, *PAGES]
        for verb in re.findall(r"`depthcut ([a-z][a-z-]*)", path.read_text(encoding="utf-8"))
    }
    assert ("run.py", "prune") in named
    assert {place for place in named if place[1] not in commands} == set()


def test_no_file_outgrows_its_reader():
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FILE} == {}


def test_the_files_that_begin_are_there():
    text = (ROOT / "tests/conftest.py").read_text(encoding="utf-8")
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LONGEST_FIRST"
    )
    assert len(names) == len(set(names)) and all((ROOT / "tests" / name).is_file() for name in names)


def test_no_class_outgrows_its_reader():
    classes = {
        node.name: node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: count for name, count in classes.items() if count > LINES_OF_A_CLASS} == {}


def test_no_public_class_name_is_defined_twice():
    """Classes and aliases of types; the options of a command are named after what they set."""
    named = {}
    for path in SOURCES:
        if path.parent.name == "commands":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            for name in (getattr(target, "id", getattr(target, "name", "")) for target in targets):
                if re.fullmatch(r"[A-Z]\w*[a-z]\w*|FAMILIES", name):
                    named.setdefault(name, []).append(path.name)
    assert {"DecoderStream", "FAMILIES", "Visitor"} <= named.keys()
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


def test_what_is_registered_side_by_side_may_not_import_each_other():
    """Every file that registers a search, metric, repair or export stands in the contract of its folder."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    bound = {name for contract in contracts if contract["type"] == "independence" for name in contract["modules"]}
    siblings = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if re.search(r"^[A-Z]+\.register\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(siblings) > 20
    assert siblings - bound == {"depthcut.export.hf"}  # the other forms stand on it


def test_the_page_on_a_run_names_its_stages_in_order_in_at_most_15_files():
    source = ROOT / "src/depthcut"
    code = (source / "run/prune.py").read_text(encoding="utf-8").partition("def prune_model")[2]
    page = (ROOT / "docs/how-a-run-goes.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    files, places = {"run/prune.py", "one of methods/"}, []
    for functions, where in rows:
        named = re.findall(r"`([\w/]+\.py)`", where)
        files.update(named)
        text = "".join((source / name).read_text(encoding="utf-8") for name in named)
        stages = re.findall(r"`(?:\w+\.)?(\w+)`", functions)
        assert all(re.search(rf"def {stage}\(", text) for stage in stages)
        places += [re.search(rf"\b{stages[0]}\(", code).start()] if stages[0] != "build" else []
    assert len(rows) == 10 and len(files) <= LIMIT_OF_FILES
    assert places == sorted(places)
