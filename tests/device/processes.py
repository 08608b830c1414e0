"""Processes that have the stand-in accelerator or do not: a device that torch knows is known to the whole process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STANDIN = Path(__file__).parent / "standin"


def need_compiler() -> None:
    """Skips where nothing can compile the stand-in; in CI (which sets `CI`) that is a failure."""
    if shutil.which("g++") is None:
        why = (
            "the stand-in accelerator needs a C++ compiler: install g++, or leave these tests out with -m 'not device'"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def run_on(device: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words on one thread; where `device` is the stand-in, torch has it."""
    path = [*sys.path, *([] if device == "cpu" else [str(STANDIN)])]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
