"""Says how far long work is: a bar on a terminal, plain lines in a log; nothing on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 15.0


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[float], None]]:
    """Shows the progress of one piece of work.

    Args:
        description: what is being done, for people.
        total: how many steps there are.

    Yields:
        A function to call with the number of steps just done.
    """
    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda steps: bar.advance(task, steps)
        return

    done, started = 0.0, time.monotonic()
    told = started

    def advance(steps: float) -> None:
        nonlocal done, told
        done += steps
        if (now := time.monotonic()) - told >= LOG_EVERY_SECONDS:
            told = now
            taken = now - started
            left = f", about {taken * (total - done) / done:.0f} s left" if 0 < done < total else ""
            print(f"{description}: {round(done)} of {total}, {taken:.0f} s{left}", file=sys.stderr, flush=True)

    yield advance
    print(f"{description}: {round(done)} of {total}, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
