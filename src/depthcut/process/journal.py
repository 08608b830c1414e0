"""The results of a long run, one per line, so that a run killed at any moment continues without repeating work.

The first line says what the results are of; a journal of anything else is refused. A last line that was cut off in the
middle is dropped. Lines are appended and handed to the operating system at once, so a killed process loses at most the
result it was computing. Where several ranks work, each appends to a file of its own; whoever opens the journal next,
with however many ranks, reads them all and leaves one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthcut.process.ranks import ALONE, Ranks, Shard
from depthcut.types import InputError, require_regular


class Journal:
    """Append-only JSON lines.

    Args:
        path: the file, made where it does not exist; None keeps nothing.
        settings: what every result depends on; JSON values.
        ranks: the processes that write it. All of them must make it together.

    Attributes:
        lines: all results so far that every process knows, those of earlier processes first.
        own: results that only this process knows: a shard's, found by an earlier process of the same shard.

    Raises:
        InputError: the file is of other settings, or damaged elsewhere than in its last line.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.own: list[dict[str, Any]] = []
        self._header = json.dumps({"journal": 1, **settings}, sort_keys=True)
        if path is None:
            return
        if isinstance(ranks, Shard):
            self.own = self._open(path)
            merged = None if ranks.merged is None else ranks.merged / path.name
            if merged is not None and merged.is_file():
                self.lines = self._parse(merged, self._texts(merged))
            return
        self.lines = ranks.from_first(lambda: self._open(path))
        if not ranks.is_first:
            self.path = path.with_suffix(f".rank-{ranks.index}{path.suffix}")
            self.path.write_text(self._header + "\n", encoding="utf-8")

    def _open(self, path: Path) -> list[dict[str, Any]]:
        require_regular(path)
        if not path.is_file() or b"\n" not in path.read_bytes():
            path.write_text(self._header + "\n", encoding="utf-8")
        unite(path)
        return self._parse(path, self._texts(path))

    def _texts(self, path: Path) -> list[str]:
        first, *results = whole_lines(path)
        if first != self._header:
            raise InputError(
                f"the journal {path} is of another model, text or objective; give the settings it was begun with, or "
                "--overwrite to begin anew"
            )
        return results

    @staticmethod
    def _parse(path: Path, texts: list[str]) -> list[dict[str, Any]]:
        lines = []
        for number, text in enumerate(texts, start=2):
            try:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError("no JSON object")
                lines.append(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number} of {path} is damaged; --overwrite begins anew") from error
        return lines

    def add(self, line: dict[str, Any]) -> None:
        """Appends one result."""
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def unite(path: Path) -> None:
    """Moves what ranks have written beside a journal into it; for one process, while no rank writes.

    Killed at any moment it loses nothing, and the next call finishes it.

    Raises:
        InputError: a rank wrote of other settings.
    """
    beside = sorted(path.parent.glob(f"{path.stem}.rank-*{path.suffix}"))
    texts = whole_lines(path)
    for of_rank in beside:
        first, *results = whole_lines(of_rank) or texts[:1]
        if first != texts[0]:
            raise InputError(
                f"{of_rank} and {path} are of different models, texts or objectives; --overwrite begins anew"
            )
        texts += results
    replace_lines(path, texts)
    for of_rank in beside:
        of_rank.unlink()


def whole_lines(path: Path) -> list[str]:
    """The lines of a journal, its header first; a last line that was cut off is dropped with a message."""
    try:
        *whole, cut_off = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8 text; --overwrite begins anew") from error
    if cut_off:
        print(f"{path.name}: dropped its last line, which was cut off", file=sys.stderr)
    return whole


def replace_lines(path: Path, lines: list[str]) -> None:
    """Writes lines, the header first and none twice, so that a killed process leaves the old file or the new one."""
    text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
