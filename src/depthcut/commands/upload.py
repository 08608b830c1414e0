"""What `--push-to-hub` does."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def require_token(repository: str | None) -> None:
    """Raises InputError where a repository is named and nothing could be written to it."""
    if repository is not None:
        from depthcut.export.hub import check_push

        check_push(repository)


def upload(folder: Path, repository: str | None) -> None:
    """Uploads a written folder where a repository is named; ends with exit code 1 where that fails."""
    if repository is None:
        return
    from depthcut.export.hub import PushError, push

    try:
        print(f"pushed to {push(folder, repository)}")
    except PushError as error:
        print(f"depthcut: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
