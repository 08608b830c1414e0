"""A signal ends a run with one line, and it goes on from its journal; a damaged journal is refused."""

import signal
import subprocess
import sys
import time

import pytest

import depthcut
import tiny
from depthcut.process.journal import Journal
from depthcut.types import InputError
from example_run import PROGRESS, read, without_cost, words

OPTIONS = tiny.SHORT_RUN | {"unit": "block", "repair": "none", "calibration": "stdlib"}
pytestmark = pytest.mark.usefixtures("quick_reload")


HOLDS = """
import signal

import torch
from depthcut import cli
from depthcut.process.journal import Journal

add, written = Journal.add, []

def hold(journal, line):
    add(journal, line)
    written.append(line)
    while len(written) > 25:
        torch.ones(64, 64) @ torch.ones(64, 64)

Journal.add = hold
# A shell that starts the tests in the background has its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_with_one_line_and_the_run_goes_on(model, tmp_path, number, code):
    options = OPTIONS | {"calibration_samples": 16, "method": "greedy,strategy=exhaustive"}
    output = tmp_path / "out"
    # It computes on and on until the signal, so that this comes in the middle on a machine of any speed.
    script = tmp_path / "holds.py"
    script.write_text(HOLDS)
    given = [sys.executable, str(script), "prune", str(model), "-o", str(output), *map(str, words(options))]
    process = subprocess.Popen(given, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.unfinished" / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("\n") > 20):
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == code, told
    assert [line for line in told.splitlines() if not PROGRESS.match(line)] == [
        "depthcut: interrupted; the same command with --resume goes on"
    ]
    assert not output.exists()
    kept = journal.read_text().count("\n")
    depthcut.prune(str(model), output=output, resume=True, **options)
    assert (output / "journal.jsonl").read_text().count("\n") > kept
    depthcut.prune(str(model), output=tmp_path / "undisturbed", **options)
    assert without_cost(read(output)) == without_cost(read(tmp_path / "undisturbed"))


def test_a_journal_of_other_settings_is_refused(tmp_path):
    Journal(tmp_path / "journal.jsonl", {"objective": "kl"}).add({"value": 1})
    with pytest.raises(InputError, match="is of another model, text or objective; give the settings it was begun with"):
        Journal(tmp_path / "journal.jsonl", {"objective": "js"})


def test_a_journal_damaged_in_its_middle_is_refused_and_kept(tmp_path):
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, {})
    for value in range(3):
        journal.add({"value": value})
    damaged = file.read_text().replace('{"value": 1}', '{"val')
    file.write_text(damaged)
    with pytest.raises(InputError, match=r"line 3 of .* is damaged; --overwrite begins anew"):
        Journal(file, {})
    assert file.read_text() == damaged
