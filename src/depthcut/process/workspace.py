"""The output folder in the making: it appears whole, under its name, or not at all.

Work goes on in a hidden folder beside the output, which keeps what a killed run has already found; the last act is one
rename. A run that a bad input ends leaves nothing, since the same command cannot go on. One process at a time may work
on an output.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from depthcut.process.ranks import ALONE, Ranks
from depthcut.types import InputError, ResourceError

STUDY = "study.json"
RESULTS = ("plan.json", "scores.json", STUDY)
"""A directory that holds one of these was written by depthcut."""


def check_output(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Checks before any work that the output can be written.

    Raises:
        InputError: it exists and may not be overwritten, is no directory of ours to overwrite, or cannot be written.
    """
    if output.is_file():
        raise InputError(f"the output {output} is a file; name a directory")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise InputError(f"the output {output} exists and is not empty; choose another, or pass --overwrite")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).is_file() for name in RESULTS):
        raise InputError(f"the output {output} holds no result of depthcut, so it is not overwritten; choose another")
    parent = output.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"the output {output} cannot be written: {parent} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"the output {output} cannot be written: no permission in {parent}")
    unfinished = work_folder(output)
    if unfinished.exists() and not (resume or overwrite):
        raise InputError(
            f"an unfinished run for {output} lies in {unfinished}; pass --resume to go on with it, or --overwrite to "
            "throw it away"
        )


def work_folder(output: Path) -> Path:
    """The folder in which an output is written until it is complete."""
    resolved = output.resolve()
    return resolved.parent / f".{resolved.name}.unfinished"


@contextmanager
def workspace(
    output: Path, *, overwrite: bool, resume: bool, resumable: bool = True, ranks: Ranks = ALONE
) -> Iterator[Path]:
    """The folder to work in. On leaving without an exception it becomes the output; else it stays for `--resume`.

    Args:
        resumable: whether the command can go on with what it left; otherwise it leaves nothing.
        ranks: the processes that work together: the first makes the folder and the output, the others use it.

    Raises:
        InputError: see `check_output`; another process works on the same output; or a rank does not see the folder.
    """
    if not ranks.is_first:
        shared = ranks.from_first(Path)
        if not shared.is_dir():
            raise InputError(
                f"rank {ranks.index} does not see {shared}; put the output on a file system that all machines share"
            )
        yield shared
        return
    check_output(output, overwrite=overwrite, resume=resume)
    work = work_folder(output)
    with locked(output, work.with_suffix(".lock")):
        if work.exists() and not resume:
            shutil.rmtree(work)
        resumed = work.exists()
        work.mkdir(exist_ok=True)
        try:
            ranks.from_first(lambda: work)
            yield work
        except BaseException as error:
            from depthcut.process.faults import resource_error

            again = "the same command with --resume goes on" if resumable else "give the command again"
            lacking = error if isinstance(error, ResourceError) else resource_error(error, again)
            in_vain = isinstance(error, InputError) and lacking is None and not resumed
            if in_vain or not resumable or not any(work.iterdir()):
                shutil.rmtree(work)
            if lacking is not None and lacking is not error:
                raise lacking from error
            raise
        if output.exists():
            shutil.rmtree(output)
        work.rename(output)


@contextmanager
def locked(output: Path, lock_path: Path) -> Iterator[None]:
    """Keeps other processes off the output. Raises InputError where one is at work, or nothing can be written."""
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("w")
    except OSError as error:
        raise InputError(f"the output {output} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process is working on {output}; wait for it or choose another output") from error
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)
