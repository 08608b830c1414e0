"""Tasks, dense against pruned: which measurements they are, their table, and what their figure holds.

The measurements of a task are called `TASK/METRIC`, and what pairs a model with the dense one over the same items
`TASK/METRIC/difference` and `TASK/METRIC/retained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.evaluation.paired import DIFFERENCE, RETAINED
from depthcut.report.table import DENSE, UNKNOWN, value_text
from depthcut.results import Measurement
from depthcut.types import Record

USUAL_METRICS = ("acc_norm", "acc", "acc_bytes")
"""Right answers among options: of one task the figure shows the first that there is, the table all."""


class TaskScore(Record):
    """One share in [0, 1] of one model, as the figure shows it."""

    task: str
    model: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task.

    Attributes:
        data: the items and, where its name does not say it, what the metric counts.
        texts: one for each of the table's heads.
    """

    label: str
    data: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TaskTable:
    """All metrics of all tasks; of every model but the dense one also the difference and what is retained."""

    heads: tuple[str, ...]
    rows: tuple[TaskRow, ...]


def is_task(measurement: Measurement) -> bool:
    """Whether a measurement belongs to a task rather than to the model as a whole."""
    return "/" in measurement.name.removesuffix(DIFFERENCE).removesuffix(RETAINED)


def is_paired(name: str) -> bool:
    """Whether a task's measurement is about a pair of models rather than one."""
    return name.endswith((DIFFERENCE, RETAINED))


def task_table(measurements: Sequence[Measurement]) -> TaskTable:
    """The table of the tasks among the measurements, in order of appearance."""
    found = {(m.name, m.data, m.model): m for m in measurements if is_task(m)}
    models = list(dict.fromkeys(model for _, _, model in found))
    others = [model for model in models if model != DENSE]
    heads = [*([DENSE] if DENSE in models else [])]
    for model in others:
        heads += [model, "difference", "retained"] if DENSE in models else [model]
    rows = []
    for name, data in dict.fromkeys((name, data) for name, data, _ in found if not is_paired(name)):
        cells = [_value_text(found.get((name, data, DENSE)))] if DENSE in models else []
        for model in others:
            cells.append(_value_text(found.get((name, data, model))))
            if DENSE in models:
                cells.append(_value_text(found.get((name + DIFFERENCE, data, model)), "points"))
                cells.append(_value_text(found.get((name + RETAINED, data, model))))
        unit = next(m.unit for (key, _, _), m in found.items() if key == name)
        rows.append(TaskRow(_label(name), "; ".join(filter(None, [data, _unit_words(name, unit)])), tuple(cells)))
    return TaskTable(tuple(heads), tuple(rows))


def task_results(measurements: Sequence[Measurement]) -> list[TaskScore]:
    """What the figure shows: shares, one metric of right answers a task."""
    shares = [m for m in measurements if is_task(m) and not is_paired(m.name) and _is_share(m) and 0 <= m.value <= 1]
    metrics: dict[str, set[str]] = {}
    for measurement in shares:
        task, metric = measurement.name.rsplit("/", 1)
        metrics.setdefault(task, set()).add(metric)
    usual = {
        task: next((metric for metric in USUAL_METRICS if metric in known), None) for task, known in metrics.items()
    }
    return [
        TaskScore(task=_label(m.name), model=m.model, value=m.value, stderr=m.stderr)
        for m in {(m.name, m.model): m for m in shares}.values()
        if _metric(m) not in USUAL_METRICS or _metric(m) == usual[m.name.rsplit("/", 1)[0]]
    ]


def retained_average(measurements: Sequence[Measurement]) -> str:
    """What the pruned model retains of the average over tasks, empty where that was not measured."""
    for measurement in measurements:
        is_average = measurement.name.startswith("average/") and measurement.name.endswith(RETAINED)
        if is_average and measurement.model == "pruned":
            return _value_text(measurement)
    return ""


def _metric(measurement: Measurement) -> str:
    return measurement.name.rsplit("/", 1)[1]


def _is_share(measurement: Measurement) -> bool:
    return measurement.unit.startswith("share")


def _label(name: str) -> str:
    """`generation/greedy_copy` as `generation, greedy copy`; metrics of a task keep their names."""
    task, metric = name.rsplit("/", 1)
    return f"{task}, {metric.replace('_', ' ')}" if task == "generation" else f"{task} {metric}"


def _unit_words(name: str, unit: str) -> str:
    """The unit of measure where neither the name nor the percent sign says it."""
    return "" if unit in ("share of items", name.rsplit("/", 1)[1]) else unit


def _value_text(measurement: Measurement | None, percent: str = "%") -> str:
    """A share in percent, a difference of shares in percentage points with its sign, anything else as a number."""
    if measurement is None:
        return UNKNOWN
    is_difference = measurement.name.endswith(DIFFERENCE)
    if not _is_share(measurement):
        text = value_text(measurement.value, "number", 4, measurement.stderr)
        return f"+{text}" if is_difference and measurement.value > 0 else text
    number = f"{100 * measurement.value:{'+' if is_difference else ''}.1f}".replace("-", "−")
    error = "" if measurement.stderr is None else f" ± {100 * measurement.stderr:.1f}"
    return f"{number}{error} {percent}"
