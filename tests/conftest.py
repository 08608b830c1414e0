"""Tests are offline and repeatable."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# On models this small a second thread costs more than it does, and on a busy machine ten times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

pytest_plugins = ["browser"]

LONGEST_FIRST = [
    "device/test_devices.py",
    "device/test_paged.py",
    "test_real_models.py",
    "repairs/test_healing_real.py",
    "export/test_gguf_engine.py",
    "process/test_torchrun.py",
    "docs/test_code_blocks.py",
    "recipes/test_recipes.py",
    "process/test_shares.py",
    "families/test_families.py",
    "model/test_stream.py",
    "process/test_shards.py",
    "model/test_paging.py",
    "model/test_multimodal.py",
    "repairs/test_closed_forms.py",
    "methods/test_greedy.py",
    "run/test_removed.py",
    "export/test_quantised.py",
    "repairs/test_healing.py",
    "export/test_stored.py",
]
"""The files that take longest, more than about 15 seconds of a processor each, in the order of that."""


def pytest_collection_modifyitems(items):
    """Lets the longest files begin first, so that no worker is left alone with one of them at the end."""
    place = {TESTS / name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture
def exit_code(monkeypatch):
    """`exit_code(words...)`: runs the command line in this process; what it ends with."""
    from depthcut import cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["depthcut", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    return run


@pytest.fixture
def outcome(exit_code, capsys):
    """`outcome(words...)`: the code that the command line ends with, and what it prints: `out` and `err`."""
    return lambda *words: (exit_code(*words), capsys.readouterr())


@pytest.fixture
def command(outcome):
    """`command(words..., code=0)`: what the command line prints, or what it says where it ends with another code."""

    def run(*words, code=0):
        ended, printed = outcome(*words)
        assert ended == code, printed.err
        return printed.err if code else printed.out

    return run


@pytest.fixture
def told(outcome):
    """`told(words..., code=...)`: the lines that the command line prints on standard error beside progress."""
    from example_run import PROGRESS

    def run(*words, code):
        ended, printed = outcome(*words)
        lines = [line for line in printed.err.splitlines() if line and not PROGRESS.match(line)]
        assert ended == code, lines
        return lines

    return run


@pytest.fixture
def quick_reload(monkeypatch):
    """Written models are reloaded in this process, and decode a few tokens: a fresh process takes seconds to start."""
    import tiny
    from depthcut.export import hf

    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)


@pytest.fixture(scope="session")
def fresh_reader(tmp_path_factory):
    """One process, started once, that reloads written models as a fresh one would."""
    import torch

    from depthcut.export import hf
    from fresh_reader import FreshReader

    with FreshReader(hf.RELOAD_SCRIPT, tmp_path_factory.mktemp("modules"), torch.get_num_threads()) as reader:
        yield reader


@pytest.fixture
def read_afresh(fresh_reader, monkeypatch):
    """Written models are reloaded in a process other than this one, which starts once for all tests."""
    from depthcut.export import hf

    monkeypatch.setattr(hf, "subprocess", SimpleNamespace(run=fresh_reader.run))
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
