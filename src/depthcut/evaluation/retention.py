"""What pruned models keep of the dense model's task scores: measurements paired over the same items.

Of every metric of a task: the score of each model, the difference to the dense one and, where more is better, the
share that is retained: of what is above chance where the answer is one of given options, else of all. An average over
tasks takes one metric of each, right answers by length-normalised likelihood where a task has them (`acc_norm`), as
the tables of ShortGPT and its peers do.

Names are `TASK/METRIC`, followed by `/difference` or `/retained`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthcut.evaluation.harness import CHOICE_METRICS, TaskResult
from depthcut.evaluation.paired import (
    DIFFERENCE,
    RETAINED,
    Estimate,
    Stratum,
    averaged,
    bootstrap,
    chance_level,
    dense_score,
    difference,
    other_score,
    retained,
    stratum,
)
from depthcut.evaluation.suite import Suite, Task, TaskGroup
from depthcut.results import Measurement

AVERAGE = "average"
Results = Mapping[str, TaskResult]
"""One model's results, by task."""


@dataclass(frozen=True)
class Score:
    """One metric of one row for the dense model and another.

    Attributes:
        strata: the items, where the metric is a mean over them; empty where it is not.
        share: what is retained, None where that cannot be told.
    """

    metric: str
    dense: Estimate
    other: Estimate
    change: Estimate
    num_items: int
    strata: tuple[Stratum, ...] = ()
    share: Estimate | None = None


def compare_tasks(suite: Suite, results: Mapping[str, Results]) -> list[Measurement]:
    """Scores of all models, and differences and shares of those after the first, which is the dense one.

    Args:
        results: by model, the dense one first.
    """
    reference, *others = results
    rows: dict[str, list[Measurement]] = {}
    for name in others or [reference]:
        found = [(row, _scores(suite, row, results[reference], results[name])) for row in suite.rows]
        for row, scores in found:
            for score in scores:
                _add(rows, row.name, _data(suite, row), score, reference, name if others else None)
        average = _average(found)
        if average is not None:
            _add(rows, AVERAGE, *average, reference, name if others else None)
    return [measurement for group in rows.values() for measurement in group]


def _add(
    rows: dict[str, list[Measurement]], row: str, data: str, score: Score, reference: str, other: str | None
) -> None:
    """Adds one score's measurements under its name; the dense model's once."""
    name = f"{row}/{score.metric}"
    common = {"data": data, "samples": score.num_items}
    unit = "share of items" if score.strata else score.metric
    group = rows.setdefault(name, [])
    if not group:
        group.append(_measured(name, score.dense, unit, reference, common))
    if other is None:
        return
    group.append(_measured(name, score.other, unit, other, common))
    group.append(_measured(name + DIFFERENCE, score.change, unit, other, common))
    if score.share is not None:
        chance = chance_level(score.strata)
        base = "share of dense" if chance is None else f"share of dense above chance ({chance:.3g})"
        group.append(_measured(name + RETAINED, score.share, base, other, common))


def _measured(name: str, found: Estimate, unit: str, model: str, common: Mapping[str, Any]) -> Measurement:
    return Measurement(name=name, value=found.value, stderr=found.stderr, unit=unit, model=model, **common)


def _data(suite: Suite, row: Task | TaskGroup) -> str:
    if isinstance(row, Task):
        return row.description
    first = suite.tasks[row.tasks[0]].description
    return f"{len(row.tasks)} tasks, such as {row.tasks[0]}: {first}"


def _scores(suite: Suite, row: Task | TaskGroup, dense: Results, other: Results) -> list[Score]:
    """The scores of one row by metric; of a group only those that are means over items."""
    if isinstance(row, Task):
        return [_task_score(row, key, dense[row.name], other[row.name]) for key in dense[row.name].metrics]
    found = []
    keys = {key for name in row.tasks for key in dense[name].metrics if key.partition(",")[0] in row.by_size}
    for key in sorted(keys):
        parts = [
            _task_score(suite.tasks[name], key, dense[name], other[name])
            for name in row.tasks
            if key in dense[name].metrics
        ]
        if all(part.strata for part in parts):
            counts = [part.num_items if row.by_size[key.partition(",")[0]] else 1 for part in parts]
            weighted = zip(counts, parts, strict=True)
            strata = [piece.scaled(count / sum(counts)) for count, part in weighted for piece in part.strata]
            found.append(_of_strata(parts[0].metric, strata))
    return found


def _task_score(task: Task, key: str, dense: TaskResult, other: TaskResult) -> Score:
    """One metric of one task, over the items that both models have a value of."""
    metric, _, chosen = key.partition(",")
    name = metric if chosen == "none" else key
    pairs = [
        (first.values[key], second.values[key], first.chance)
        for first, second in zip(dense.items, other.items, strict=True)
        if key in first.values and key in second.values
    ]
    values, others, chances = zip(*pairs, strict=True)
    aggregate = task.aggregation.get(metric)
    if all(isinstance(value, int | float) for value in (*values, *others)) and _is_mean(aggregate):
        guess = chances if metric in CHOICE_METRICS and None not in chances else None
        better = bool(task.inner.higher_is_better().get(metric, True))
        return _of_strata(name, [stratum(values, others, guess)], share=better)
    assert aggregate is not None
    first, second, change = bootstrap(values, others, aggregate)
    return Score(name, first, second, change, len(pairs))


def _is_mean(aggregate: Callable[[list[Any]], float] | None) -> bool:
    """Whether a metric is the mean over items, which is what the harness takes where a task names nothing."""
    return aggregate is None or (aggregate.__module__, aggregate.__name__) == ("lm_eval.api.metrics", "mean")


def _of_strata(metric: str, strata: Sequence[Stratum], *, share: bool = True) -> Score:
    return Score(
        metric,
        dense_score(strata),
        other_score(strata),
        difference(strata),
        sum(len(part.dense) for part in strata),
        tuple(strata),
        retained(strata) if share else None,
    )


def _average(found: Sequence[tuple[Task | TaskGroup, Sequence[Score]]]) -> tuple[str, Score] | None:
    """The mean over the rows that have right answers, and which metric of each; nothing where fewer than two have."""
    chosen = [(row.name, score) for row, scores in found if (score := _main(scores)) is not None]
    if len(chosen) < 2:
        return None
    words = ", ".join(f"{name}/{score.metric}" for name, score in chosen)
    return f"mean of {words}", _of_strata("accuracy", averaged([score.strata for _, score in chosen]))


def _main(scores: Sequence[Score]) -> Score | None:
    """The metric of a row that counts in an average: right answers if there are such, else another share of items."""
    means = {score.metric: score for score in scores if score.strata and _is_share(score)}
    for name in CHOICE_METRICS:
        if name in means:
            return means[name]
    return next(iter(means.values()), None)


def _is_share(score: Score) -> bool:
    """Whether every item counts between nothing and one."""
    return all(
        float(values.min()) >= 0 and float(values.max()) <= 1
        for part in score.strata
        for values in (part.dense, part.other)
    )
