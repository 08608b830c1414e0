"""`depthcut report`: the page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.types import InputError


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories that prune or apply wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default DIR/report.html; of several runs a name to give.")
    ] = None,
) -> None:
    """Make the report page again from a run's artefacts, or one page of several runs side by side."""
    from depthcut.report import Run, write_comparison, write_report

    runs = [Run.from_directory(directory) for directory in directories]
    if len(runs) == 1:
        target = output or directories[0] / "report.html"
        write_report(target, runs[0])
    elif output is None:
        raise InputError(f"{len(runs)} runs go on a page of their own; name it with --output")
    else:
        target = output
        write_comparison(target, runs)
    print(f"written to {target}")
