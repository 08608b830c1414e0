"""Several runs on one page: the answer of each in a row, everything measured in one table, and their curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.report.provenance import ON_TEXT
from depthcut.report.removal import headline, shares_removed
from depthcut.report.run import Run
from depthcut.report.table import DENSE, UNKNOWN, Row, before_after, dense_parameters
from depthcut.report.tasks import retained_average
from depthcut.results import Measurement
from depthcut.types import InputError, Plan, Record

ANSWERS = (
    ("parameters", "Parameters"),
    ("kv_bytes_per_token", "KV cache"),
    ("perplexity", "Perplexity"),
    ("kl_to_dense", "KL to dense"),
    ("logit_distance", "Logits, squared difference"),
    ("embedding_distance", "Embeddings, cosine distance"),
    ("tasks", "Tasks retained"),
    ("decode_speedup", "Decoding"),
)
CHANGES = ("parameters", "kv_bytes_per_token", "decode_tokens_per_second")
"""Quantities shown as a change from the dense model, not as a value."""


class RunCurve(Record):
    """The path of one run as a curve.

    Attributes:
        points: step, share of the parameters removed after it, objective; without steps whose objective overflowed.
        applied: steps that the run's model was made with.
        collapse: the number of steps before the objective collapses, None where it does not.
    """

    name: str
    objective: str | None
    points: tuple[tuple[int, float, float], ...]
    applied: int
    collapse: int | None


@dataclass(frozen=True)
class AnswerRow:
    """One run: what it removed and how, and a text for each of the answers."""

    name: str
    model: str
    removed: str
    search: str
    repair: str
    texts: tuple[str, ...]


def check_runs(runs: Sequence[Run]) -> None:
    """Raises InputError if the runs cannot be shown on one page."""
    if len(runs) < 2:
        raise InputError("one run has a page of its own; give two directories or more to see them side by side")
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} of the runs are called {name}; rename a directory, so that the page can tell them apart"
        )
    if any(run.name == DENSE for run in runs):
        raise InputError(f"a run is called {DENSE}, which is what the page calls the whole model; rename its directory")
    for run in runs:
        run.require_sizes()


def answers(runs: Sequence[Run]) -> tuple[list[str], list[AnswerRow]]:
    """The heads of the answers that any run has, and one row for each run, in the order given."""
    found = [_answers(run) for run in runs]
    names = [name for name, _ in ANSWERS if any(texts[name] != UNKNOWN for texts in found)]
    rows = [
        AnswerRow(
            name=run.name,
            model=run.plan.model.source,
            removed=headline(run.plan).removesuffix(" removed"),
            search=f"{run.plan.method} by {run.plan.objective}" if run.plan.objective else run.plan.method,
            repair=", ".join(repair.method for repair in run.repairs if repair.kept) or "none",
            texts=tuple(texts[name] for name in names),
        )
        for run, texts in zip(runs, found, strict=True)
    ]
    return [head for name, head in ANSWERS if name in names], rows


def joined(runs: Sequence[Run]) -> list[Measurement]:
    """The measurements of all runs under their names; one dense model for those that were made from the same.

    Speeds of single models were measured at different times, so only speed-ups, which were measured in pairs, are kept
    where there are both.
    """
    sources = {(run.plan.model.digest, run.plan.model.dtype) for run in runs}
    found: list[Measurement] = []
    for run in runs:
        names = {"pruned": run.name, DENSE: DENSE if len(sources) == 1 else f"{run.name}, {DENSE}"}
        paired = {m.name.removesuffix("_speedup") for m in run.measurements if m.name.endswith("_speedup")}
        found += [
            measurement.model_copy(update={"model": names[measurement.model]})
            for measurement in run.measurements
            if measurement.model in names and measurement.name.removesuffix("_tokens_per_second") not in paired
        ]
    return sorted(found, key=lambda measurement: measurement.model != DENSE)


def differing_texts(runs: Sequence[Run]) -> bool:
    """Whether the perplexities that answer were measured on different texts, so that they cannot be compared."""
    texts = set()
    for run in runs:
        found = [row.data for row in run.measurements if row.name in ON_TEXT and row.model == "pruned"]
        texts.update(found[:1])
    return len(texts) > 1


def run_curves(runs: Sequence[Run], collapses: Sequence[int | None]) -> list[RunCurve]:
    """The paths of the runs; one without objectives has no points."""
    return [
        RunCurve(
            name=run.name,
            objective=run.plan.objective,
            points=_points(run.plan, dense_parameters(run.measurements)),
            applied=sum(step.applied for step in run.plan.steps),
            collapse=collapse,
        )
        for run, collapse in zip(runs, collapses, strict=True)
    ]


def _points(plan: Plan, whole: float | None) -> tuple[tuple[int, float, float], ...]:
    shares = shares_removed(plan, whole)
    return tuple(
        (order, share, step.objective)
        for order, (share, step) in enumerate(zip(shares, plan.steps, strict=True), start=1)
        if step.objective is not None and math.isfinite(step.objective)
    )


def _answers(run: Run) -> dict[str, str]:
    by_name: dict[str, Row] = {row.name: row for row in reversed(before_after(run.measurements))}
    texts = {name: _answer(name, by_name.get(name)) for name, _ in ANSWERS}
    if texts["decode_speedup"] == UNKNOWN:
        texts["decode_speedup"] = _answer("decode_tokens_per_second", by_name.get("decode_tokens_per_second"))
    return texts | {"tasks": retained_average(run.measurements) or UNKNOWN}


def _answer(name: str, row: Row | None) -> str:
    if row is None:
        return UNKNOWN
    return (row.change if name in CHANGES else row.pruned) or UNKNOWN
