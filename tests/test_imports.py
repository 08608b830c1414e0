"""Every module must import by itself, and the command line without what takes seconds."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import depthcut

MODULES = [module.name for module in pkgutil.walk_packages(depthcut.__path__, "depthcut.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_module_imports(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", depthcut.__all__)
def test_every_public_name_is_there(name):
    assert getattr(depthcut, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'depthcut' has no attribute 'prun'"):
        _ = depthcut.prun


def test_help_waits_for_nothing_heavy():
    script = (
        "import sys; sys.argv = ['depthcut', 'prune', '--help']\n"
        "import depthcut.cli\n"
        "try: depthcut.cli.main()\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "--calibration-samples" in printed
    assert printed.strip().splitlines()[-1] == "[]"


def test_test_files_have_names_of_their_own():
    # pytest imports them by their bare names.
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
