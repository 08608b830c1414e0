"""A log says how far long work is and how long it still takes; at the end, how long it took."""

import re

import pytest

from depthcut.process import progress as module
from depthcut.process.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)`: time passes."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_log_tells_the_time_left(clock, capsys):
    with progress("searching", 10) as advance:
        clock(20)
        advance(4)
        clock(40)
        advance(6)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "searching: 4 of 10, 20 s, about 30 s left",
        "searching: 10 of 10, 60 s",
        "searching: 10 of 10, 60.0 s",
    ]


def test_nothing_done_foretells_nothing(clock, capsys):
    with progress("searching", 10) as advance:
        clock(20)
        advance(0)
    assert not re.search("left", capsys.readouterr().err)
