"""What a package index and a shell get: the wheel's files, the version, completion, and the site's check."""

import os
import subprocess
import sys
import zipfile

import pytest
import yaml
from check_site import problems
from code_blocks import ROOT

import depthcut


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def run(*words, **environment):
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    source = ROOT / "src"
    there = {
        path.relative_to(source).as_posix()
        for path in (source / "depthcut").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == there
    assert {"depthcut/report/vendor/d3.min.js", "depthcut/export/reload_check.py"} <= there


def test_the_wheel_names_program_licence_and_extras(wheel):
    def text(name):
        return wheel.read(f"depthcut-{depthcut.__version__}.dist-info/{name}").decode()

    assert "depthcut = depthcut.cli:main" in text("entry_points.txt")
    assert "License-Expression: Apache-2.0" in text("METADATA")
    assert "Apache License" in text("licenses/LICENSE")
    for extra in ("heal", "quantise", "llamacpp", "eval"):
        assert f"Provides-Extra: {extra}\n" in text("METADATA")


def test_the_version_is_one(wheel):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == depthcut.__version__
    assert f"depthcut-{depthcut.__version__}.dist-info/METADATA" in wheel.namelist()
    assert run(sys.executable, "-m", "depthcut", "--version").stdout == f"depthcut {depthcut.__version__}\n"


def test_a_shell_completes_commands_and_options():
    def completed(*words):
        asked = {"COMP_WORDS": " ".join(("depthcut", *words)), "COMP_CWORD": str(len(words))}
        script = "from depthcut.cli import app; app(prog_name='depthcut')"
        return run(sys.executable, "-c", script, _DEPTHCUT_COMPLETE="complete_bash", **asked).stdout.split()

    assert completed("pr") == ["prune"]
    assert completed("prune", "smollm2", "--max") == ["--max-forwards", "--max-increase"]


def test_a_page_that_loads_from_elsewhere_is_found(tmp_path):
    (tmp_path / "here.js").touch()
    (tmp_path / "page.html").write_text(
        '<script src="here.js"></script><script src="there.js"></script><a href="https://example.org">x</a>'
        '<link rel="canonical" href="https://example.org"><link rel="stylesheet" href="https://example.org/a.css">'
        '<img src="//example.org/b.png">'
    )
    assert list(problems(tmp_path)) == [
        "page.html loads there.js, which is not there",
        "page.html loads https://example.org/a.css",
        "page.html loads //example.org/b.png",
    ]
