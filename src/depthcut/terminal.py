"""Measurements as tables on a terminal: of the models as a whole, and of tasks and texts they were asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.types import Measurement

if TYPE_CHECKING:
    from rich.table import Table

LOG_WIDTH = 200
"""Characters a line where the output is no terminal that says how wide it is."""


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """The models beside each other; ± is the standard error, of a difference that of the paired items."""
    from depthcut.report import before_after, columns, is_task, task_table
    from depthcut.report.table import UNKNOWN

    whole = [measurement for measurement in measurements if not is_task(measurement)]
    rows = before_after(whole)
    if rows:
        table = _table(columns(whole))
        for row in rows:
            alike = sum(each.name == row.name for each in rows)
            table.add_row(_label(row.label, row.data) if alike > 1 else row.label, *row.texts)
        _print(table)
        texts = {row.name: row.data for row in rows if row.data}
        for name in ("perplexity", "prompt_tokens_per_second"):
            if name in texts:
                print(f"{name.split('_')[0]}: {'; '.join(row.data for row in rows if row.name == name)}")
    asked = task_table(measurements)
    if asked.rows:
        print()
        told = [place for place in range(len(asked.heads)) if any(row.texts[place] != UNKNOWN for row in asked.rows)]
        table = _table([asked.heads[place] for place in told])
        for task in asked.rows:
            table.add_row(task.label, *(task.texts[place] for place in told))
        _print(table)
        print("± is the standard error, of a difference over the same items")


def _label(label: str, data: str) -> str:
    """A row's label with its text's name, for rows that differ in nothing else."""
    return f"{label} ({data.partition(' (')[0].rpartition('/')[2]})"


def _table(heads: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)
