"""What long work has already found, one line a result: a run killed at any moment goes on without repeating it.

The first line says what the results are of; a journal of anything else is refused. A last line that was cut off in the
middle is dropped. Lines are appended and handed to the operating system at once, so a killed process loses at most the
result it was computing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthcut.types import InputError


class Journal:
    """Append-only JSON lines.

    Args:
        path: the file, made where it does not exist; None keeps nothing.
        settings: what every result depends on; JSON values.

    Attributes:
        lines: all results so far, those of earlier processes first.

    Raises:
        InputError: the file is of other settings, or damaged elsewhere than in its last line.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        header = json.dumps({"journal": 1, **settings}, sort_keys=True)
        if path is None:
            return
        if path.is_file() and path.stat().st_size:
            self._read(path, header)
        else:
            path.write_text(header + "\n", encoding="utf-8")

    def _read(self, path: Path, header: str) -> None:
        text = path.read_text(encoding="utf-8")
        whole, _, cut_off = text.rpartition("\n")
        if cut_off:
            print(f"{path.name}: dropped its last line, which was cut off", file=sys.stderr)
            path.write_text(whole + "\n" if whole else header + "\n", encoding="utf-8")
        first, *results = whole.split("\n") if whole else [header]
        if first != header:
            raise InputError(
                f"the journal {path} is of another model, text or objective; give the settings it was begun with, or "
                "--overwrite to begin anew"
            )
        for number, line in enumerate(results, start=2):
            try:
                self.lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} of {path} is damaged; --overwrite begins anew") from error

    def add(self, line: dict[str, Any]) -> None:
        """Appends one result."""
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
