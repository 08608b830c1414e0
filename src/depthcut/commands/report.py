"""`depthcut report`: the page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.types import InputError


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories that prune or apply wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default DIR/report.html; required for several runs.")
    ] = None,
) -> None:
    """Make the report page of a run again from its files, or one page of several runs side by side."""
    from depthcut.report import Run, write_comparison, write_report

    _check_target(output)
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


def _check_target(output: Path | None) -> None:
    """Raises InputError where no page can be written under the given name."""
    if output is None:
        return
    if output.is_dir():
        raise InputError(f"{output} is a folder; name a file in it, such as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} into; make it, or name another")
