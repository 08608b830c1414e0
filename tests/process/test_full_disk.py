"""A full disk ends with one sentence and exit code 2, loses nothing, and can be gone on from."""

import subprocess

import pytest

import depthcut
import tiny
from depthcut.process.faults import is_out_of_space
from depthcut.process.journal import Journal
from depthcut.run import plan, prune, write
from example_run import read, without_cost, words
from small_disk import SmallDisk

OPTIONS = tiny.SHORT_RUN | {"unit": "block", "repair": "none", "calibration": "stdlib"}
pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    made = SmallDisk(folder)
    yield made
    made.make_room()
    if made.is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill_before(monkeypatch, disk, owner, name, call=1):
    """Has the disk fill up just before the given call of a function."""
    calls = 0
    real = getattr(owner, name)

    def run(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            disk.fill(args[0].path if owner is Journal else None)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, run)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (prune, "find_plan", 1),
        (plan, "static_scores", 1),
        (Journal, "add", 9),
        (write, "write_directory", 1),
        (write, "write_report", 1),
    ],
    ids=["scores", "scoring", "journal", "model", "report"],
)
def test_a_full_disk_loses_nothing(model, tmp_path, disk, monkeypatch, told, owner, name, call):
    output = disk.folder / "out"
    given = ["prune", model, "-o", output, *words(OPTIONS)]
    with monkeypatch.context() as patch:
        fill_before(patch, disk, owner, name, call)
        lines = told(*given, code=2)
    assert len(lines) == 1
    assert "there is no space left" in lines[0] and lines[0].endswith("then the same command with --resume goes on")
    assert not output.exists()
    disk.make_room()
    lines = told(*given, "--resume", code=0)
    assert lines == (["journal.jsonl: dropped its last line, which was cut off"] if owner is Journal else [])
    depthcut.prune(str(model), output=tmp_path / "undisturbed", **OPTIONS)
    assert without_cost(read(output)) == without_cost(read(tmp_path / "undisturbed"))
    assert {file.name for file in output.iterdir()} == {file.name for file in (tmp_path / "undisturbed").iterdir()}


def test_a_full_disk_leaves_nothing_of_what_cannot_be_resumed(model, disk, monkeypatch, told):
    fill_before(monkeypatch, disk, plan, "static_scores")
    lines = told("score", model, "-o", disk.folder / "out", "--calibration-length", "16", code=2)
    assert len(lines) == 1 and lines[0].endswith("make room, then give the command again")
    assert {file.name for file in disk.folder.iterdir()} <= {"filler"}


def test_another_error_of_the_system_is_no_full_disk():
    assert not is_out_of_space(PermissionError(13, "Permission denied"))
