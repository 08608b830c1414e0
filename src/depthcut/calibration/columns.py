"""The text in one column of a row, or one sentence on why there is none; files and hub sets share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from depthcut.types import InputError


def text_of(row: Mapping[str, object], column: str, where: str) -> str:
    """The text of `row` in `column`; empty where it is null. Raises InputError when it is missing or no text."""
    require_column(row, column, where)
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"column {column!r} of {where} holds {type(value).__name__}, not text: "
            "name the one with the text by adding ,column=NAME"
        )
    return value


def require_column(columns: Iterable[str], column: str, where: str) -> None:
    """Raises InputError that lists the columns there are when `column` is not one of them."""
    names = list(columns)
    if column not in names:
        raise InputError(
            f"{where} has no column {column!r}; its columns are {', '.join(names) or 'none'}: "
            "name the one with the text by adding ,column=NAME"
        )
