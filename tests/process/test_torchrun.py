"""The command line under torchrun: the same plan, one voice, and ranks or jobs that are killed at any moment."""

import contextlib
import json
import random
import re
import signal
import time
from collections import Counter

import psutil
import pytest
from jobs import OPTIONS, torchrun, words

import depthcut
import tiny

HEALED = {"repair": "lora,steps=3,batch_size=6,dropout=0,rank=2", "repair_samples": 8}


def finished(job, code=0):
    output, errors = job.communicate(timeout=300)
    assert job.returncode == code, errors
    return output, errors


@pytest.mark.long
def test_ranks_write_what_one_process_writes_and_train_together(model, tmp_path):
    alone = depthcut.prune(str(model), output=tmp_path / "one", **(OPTIONS | HEALED))
    output, errors = finished(torchrun(2, words(model, tmp_path / "two", **HEALED)))
    assert (tmp_path / "two" / "plan.json").read_bytes() == (tmp_path / "one" / "plan.json").read_bytes()
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == sorted(
        file.name for file in (tmp_path / "one").iterdir()
    )
    assert output.count("model and report.html written to") == 1
    told = re.findall(r"unit evaluations by rank: (\d+), (\d+)", errors)
    assert len(told) == 1 and 0 < int(told[0][1]) < int(told[0][0])
    [one], [two] = (json.loads((tmp_path / name / "repair.json").read_text()) for name in ("one", "two"))
    assert two["kept"] == one["kept"] == alone.repairs[0].kept
    assert two["after"] == pytest.approx(one["after"], abs=tiny.ROUNDING)
    for (step, loss), (other_step, other) in zip(one["curve"], two["curve"], strict=True):
        assert step == other_step and loss == pytest.approx(other, abs=1e-4)


@pytest.mark.long
def test_three_ranks_refuse_with_one_sentence(model, tmp_path):
    _, errors = finished(torchrun(3, words(model, tmp_path / "out", remove="99")), code=1)
    assert [line for line in errors.splitlines() if line.startswith("depthcut: ")] == [
        "depthcut: cannot remove 99 of 6 pair units: at most 5 can go (something must remain, and protected units stay)"
    ]
    assert re.search(r"exitcode *: 2 ", errors)
    assert not list(tmp_path.iterdir())


SLOW = """
import sys, time
from depthcut import cli
from depthcut.process.journal import Journal

add = Journal.add
Journal.add = lambda journal, line: (time.sleep(0.03), add(journal, line))
cli.main()
"""


@pytest.mark.long
def test_a_killed_rank_is_restarted_and_a_killed_job_resumed(model, tmp_path):
    chance, script = random.Random(0), tmp_path / "slow.py"
    script.write_text(SLOW)
    options = {"method": "finercut", "remove": "3"}
    depthcut.prune(str(model), output=tmp_path / "whole", **(OPTIONS | options))
    folder, killed = tmp_path / ".killed.unfinished", words(model, tmp_path / "killed", **options)

    def lines():
        # The ranks unite their journals when they begin anew: one that was listed may be gone when it is read.
        while True:
            with contextlib.suppress(FileNotFoundError):
                journals = [file.read_text() for file in folder.glob("journal*.jsonl")]
                return [line for text in journals for line in text.split("\n")[1:-1]]

    def wait_for_more(job):
        known = len(lines())
        while len(lines()) <= known:
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))

    job = torchrun(2, killed, script=[script], max_restarts=2)
    for _ in range(2):
        wait_for_more(job)
        ranks = [child for child in psutil.Process(job.pid).children() if "slow.py" in " ".join(child.cmdline())]
        chance.choice(ranks).kill()
        # The ranks of the next attempt are other processes.
        psutil.wait_procs(ranks, timeout=300)
    wait_for_more(job)
    whole_job = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in whole_job:
        process.send_signal(signal.SIGKILL)
    job.communicate()
    # A line is written when its value is known, so none of a known value is written again; what was cut off may be.
    assert max(Counter(lines()).values()) == 1
    finished(torchrun(3, [*killed, "--resume"], script=[script]))
    assert (tmp_path / "killed" / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()
    journals = [(tmp_path / name / "journal.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert sorted(journals[0]) == sorted(journals[1])
