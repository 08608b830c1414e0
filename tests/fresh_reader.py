"""One fresh process that reloads written models, one after the other, with plain transformers.

Starting a process for every model takes longer than all that is done in it. Run as a script it is the process: it
imports nothing of depthcut but a script with a `main`, such as `export/reload_check.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any


class FreshReader:
    """Runs a script as `subprocess.run` would, in a process that stays.

    Args:
        script: has a function `main` of its arguments, which prints what it finds.
        scratch: folder for the code that comes with written models.
        num_threads: as many as the process that compares has: sums round differently with their number.
    """

    def __init__(self, script: Path, scratch: Path, num_threads: int) -> None:
        self._script = str(script)
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__, self._script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch)},
        )

    def __enter__(self) -> FreshReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate()

    def run(self, command: list[str], **_: Any) -> CompletedProcess[str]:
        """What the script prints for the arguments after its name."""
        assert self._child.stdin is not None and self._child.stdout is not None
        arguments = command[command.index(self._script) + 1 :]
        assert "own" not in arguments, "depthcut would be imported there, and stay for what is read next"
        self._child.stdin.write(json.dumps(arguments) + "\n")
        self._child.stdin.flush()
        code, output, problem = json.loads(self._child.stdout.readline())
        return CompletedProcess(command, code, output, problem)


def serve(script: str) -> None:
    """Answers one line of arguments after the other."""
    specification = importlib.util.spec_from_file_location("reading", script)
    assert specification is not None and specification.loader is not None
    reading = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reading)
    assert not any(name.startswith("depthcut") for name in sys.modules)
    answers = sys.stdout
    for line in sys.stdin:
        output = io.StringIO()
        answer: tuple[int, str, str] = (0, "", "")
        with contextlib.redirect_stdout(output):
            try:
                reading.main(*json.loads(line))
            except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                answer = (1, "", f"{type(error).__name__}: {error}")
        print(json.dumps((answer[0], output.getvalue(), answer[2])), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
