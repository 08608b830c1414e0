"""Text from a file of the user's: `.txt` as one running text, `.jsonl`, `.jsonl.gz` and `.parquet` as rows.

Files are read from the start as far as they are asked for; UTF-8 is required, a byte order mark is left out. Whatever
is wrong with a file becomes an InputError that names it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from depthcut.calibration.columns import require_column, text_of
from depthcut.calibration.source import did_you_mean
from depthcut.types import InputError, require_regular

BLOCK_CHARACTERS = 1 << 16


def read_text(path: Path) -> Iterator[str]:
    """Yields the text of the file in blocks of up to 65 536 characters. Raises InputError when it is no text."""
    with _reported(path), path.open(encoding="utf-8-sig") as file:
        while block := file.read(BLOCK_CHARACTERS):
            # UTF-16 of English decodes as UTF-8 with a zero after every letter, and so do many binary files.
            if "\0" in block:
                raise InputError(f"{path} is not text: it holds zero bytes, so save it as UTF-8")
            yield block


def read_rows(path: Path, column: str) -> Iterator[str]:
    """Yields one column of the file, row by row; rows where it is null are empty.

    Raises:
        InputError: the file is missing or malformed, or the column is not there or does not hold text.
    """
    rows = _parquet_rows(path, column) if path.suffix.lower() == ".parquet" else _json_rows(path)
    with _reported(path):
        for number, row in enumerate(rows, start=1):
            text = text_of(row, column, f"row {number} of {path}")
            # JSON can hold half a surrogate pair, which no tokenizer takes.
            yield text.encode(errors="replace").decode()


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON Lines. Raises InputError when it is missing or malformed."""
    with _reported(path):
        yield from _json_rows(path)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open_lines(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"line {number} of {path} is not JSON ({error.msg}): write one object a line"
                ) from error
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"line {number} of {path} holds a number of thousands of digits or is nested too deeply; write "
                    "plain objects, one a line"
                ) from error
            if not isinstance(row, dict):
                raise InputError(f'line {number} of {path} is no JSON object: write {{"text": "..."}} on every line')
            yield row


def _open_lines(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parquet_rows(path: Path, column: str) -> Iterator[dict[str, Any]]:
    # pyarrow comes with datasets and takes a second to import; only this kind of file needs it.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_column(file.schema_arrow.names, column, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no parquet file: {str(error).splitlines()[0]}") from error


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what reading `path` can fail with into one sentence."""
    require_regular(path)
    try:
        yield
    except FileNotFoundError as error:
        near = did_you_mean(path.name, _names_beside(path))
        raise InputError(f"there is no file {path}{near}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is no complete gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: it is not UTF-8 ({error.reason}), so save it as UTF-8") from error


def _names_beside(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
