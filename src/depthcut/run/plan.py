"""From a loaded session to scores and a plan, with what was found kept on disk for a run that is killed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from depthcut.ablation.ablation import Ablation
from depthcut.calibration import Samples
from depthcut.importance import METRICS, passes_of
from depthcut.importance.static import static_scores
from depthcut.methods.budget import Budget
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.model.latency import CONTEXT_TOKENS, measure_latency
from depthcut.model.load import ModelSource
from depthcut.process.journal import Journal, unite
from depthcut.process.progress import progress
from depthcut.process.ranks import ALONE, Ranks
from depthcut.run.recipe import Recipe
from depthcut.run.session import Session
from depthcut.types import Cost, InputError, Latency, Plan, Scores, ScoreTable, Unit

HELD_OUT_SHARE = 4
"""With `--max-increase`, one calibration sequence in this many only measures the increase."""

JOURNAL, HELD_OUT = JOURNALS = ("journal", "held_out")
"""Names of the journals: values on the calibration text of the search, and on the held-out part of it."""


def recipe_of_scores(recipe: Recipe) -> Recipe:
    """The recipe for scoring without a search: its metric is the one to rank by.

    Raises:
        InputError: there is no such metric.
    """
    if recipe.metric is None:
        return recipe
    METRICS.parse(recipe.metric)
    return recipe.model_copy(update={"method": "one-shot"})


def score_units(loaded: Session, folder: Path | None) -> tuple[ScoreTable, Cost]:
    """The static scores; those that an interrupted run of the same recipe left behind are taken as they are."""
    stream, calibration, model = loaded.stream, loaded.calibration, loaded.source.provenance
    metrics = loaded.recipe.metrics
    # Whether they are made now or were made before.
    passes = 1 + sum(passes_of(metric) for metric in metrics)
    cost = Cost(unit_evaluations=passes * len(stream.units) * len(calibration.input_ids))
    file = folder / "scores.json" if folder else None
    if file is not None and file.is_file():
        found = ScoreTable.from_file(file)
        known = {scores.metric for scores in found.scores}
        if found.model == model and found.calibration == calibration.description and known.issuperset(metrics):
            return found, cost
    began = time.monotonic()
    with progress("scoring", passes * len(calibration.input_ids)) as advance:
        scores, angular = static_scores(stream, calibration, loaded.recipe.batch_size, advance, metrics)
    table = ScoreTable(model=model, calibration=calibration.description, scores=tuple(scores), angular=angular)
    if file is not None:
        table.write(file)
    return table, cost.model_copy(update={"seconds": round(time.monotonic() - began, 3)})


def find_plan(loaded: Session, problem: Problem, folder: Path | None, ranks: Ranks = ALONE) -> tuple[ScoreTable, Plan]:
    """Scores and plan of a session. Seconds aside, they are the same for any number of processes.

    Args:
        folder: where scores and journals are kept for a run that is killed; nowhere where left out.
        ranks: the processes that search together; all of them get the result.
    """
    scores, cost = ranks.from_first(lambda: score_units(loaded, folder))
    recipe, calibration = loaded.recipe, loaded.calibration
    problem = replace(problem, scores=scores)
    search, ablations = recipe.build_search(), []
    estimated: list[Scores] = []
    began = time.monotonic()
    if problem.budget.kind == "increase":
        num_held_out = max(1, len(calibration.input_ids) // HELD_OUT_SHARE)
        calibration, held_out = calibration.split(len(calibration.input_ids) - num_held_out)
        file = _journal_file(folder, HELD_OUT)
        ablations.append(make_ablation(loaded, held_out, problem.budget.objective, file, ranks))
        problem = replace(problem, held_out=ablations[0])
    if problem.budget.is_timed:
        problem = replace(problem, latency=ranks.from_first(lambda: _latency(loaded, problem.budget, folder)))
    if search.needs == "objective":
        assert search.objective is not None
        file = _journal_file(folder, JOURNAL)
        ablations.append(make_ablation(loaded, calibration, search.objective, file, ranks))
        problem = replace(problem, ablation=ablations[-1])
    if not ablations:
        return scores, make_plan(recipe, loaded.source, problem, scores, cost)
    with progress("searching", problem.steps_at_most) as advance:
        problem = replace(problem, advance=advance, keep_scores=estimated.append)
        plan = make_plan(recipe, loaded.source, problem, scores, Cost())
    cost = Cost(
        unit_evaluations=cost.unit_evaluations + sum(ablation.whole_unit_evaluations for ablation in ablations),
        candidate_evaluations=round(sum(ablation.asked_candidate_evaluations for ablation in ablations)),
        seconds=round(cost.seconds + time.monotonic() - began, 3),
    )
    if not ranks.is_first:
        folder = None
    for file in [file for name in JOURNALS if (file := _journal_file(folder, name)) and file.is_file()]:
        unite(file)
    return _with_estimates(scores, estimated, folder), plan.model_copy(update={"cost": cost})


def _with_estimates(table: ScoreTable, estimated: Sequence[Scores], folder: Path | None) -> ScoreTable:
    """The table with what a search has estimated; an interrupted run may have left the same there."""
    if not estimated:
        return table
    names = {(scores.metric, scores.unit) for scores in estimated}
    others = [scores for scores in table.scores if (scores.metric, scores.unit) not in names]
    table = table.model_copy(update={"scores": (*others, *estimated)})
    if folder is not None:
        table.write(folder / "scores.json")
    return table


def _latency(loaded: Session, budget: Budget, folder: Path | None) -> Latency:
    """Measured seconds of each kind of unit; a resumed run reads the first measurement, since another one may change
    its path.
    """
    file = folder / "latency.json" if folder else None
    if file is not None and file.is_file():
        return Latency.from_file(file)
    context, batch = budget.timing
    latency = measure_latency(loaded.stream, loaded.calibration.input_ids[:1], context or CONTEXT_TOKENS, batch)
    if file is not None:
        latency.write(file)
    return latency


def _journal_file(folder: Path | None, name: str) -> Path | None:
    return folder / f"{name}.jsonl" if folder else None


def search_batch_size(recipe: Recipe, num_sequences: int) -> int:
    """Sequences that a search runs together: few enough that what it keeps of a batch fits, and a share of the text."""
    return max(1, min(recipe.batch_size, num_sequences // 8))


def make_ablation(
    loaded: Session, text: Samples, objective: str, journal: Path | None, ranks: Ranks = ALONE
) -> Ablation:
    """The objective of a search on a session's model and text.

    Args:
        journal: file where every result is written down for a run that is killed; nowhere where left out.
        ranks: the processes that evaluate together.
    """
    recipe, stream = loaded.recipe, loaded.stream
    batch_size = search_batch_size(recipe, len(text.input_ids))
    settings = {
        "model": loaded.source.provenance.digest,
        "dtype": loaded.source.provenance.dtype,
        "calibration": text.description.digest,
        "objective": objective,
        "batch_size": batch_size,
    }
    return Ablation(
        stream,
        text,
        objective,
        journal=Journal(journal, settings, ranks),
        batch_size=batch_size,
        ranks=ranks,
        memory_budget=loaded.room.kept,
    )


def make_plan(recipe: Recipe, source: ModelSource, problem: Problem, scores: ScoreTable | None, cost: Cost) -> Plan:
    """Runs the search on a problem that holds all it needs, and marks the steps that the budget takes."""
    search = recipe.build_search()
    path = search.path(problem)
    plan = Plan(
        model=source.provenance,
        calibration=scores.calibration if scores else None,
        method=recipe.method,
        unit=problem.unit,
        budget=str(problem.budget),
        objective=search.objective,
        protected=tuple(sorted(problem.protected)),
        seed=recipe.seed,
        unit_sizes={str(unit): size for unit, size in problem.sizes.units.items()},
        steps=tuple(path),
        cost=cost,
    )
    return plan.applying(problem.num_steps(path))


def find_rivals(loaded: Session, problem: Problem, plan: Plan, scores: ScoreTable) -> dict[str, tuple[Unit, ...]]:
    """By method to compare with, the units that it removes at the same share of the parameters."""
    # Next above, since a share that was rounded down would ask of them a unit more than the plan removes.
    left = math.nextafter(problem.sizes.parameters_without(plan.removed) / problem.sizes.parameters, 1)
    rivals = {}
    for method in loaded.recipe.compare:
        _, search = SEARCHES.parse(method)
        budget = Budget("parameters", left)
        posed = replace(problem, unit=search.preferred_unit, budget=budget, scores=scores, latency=None, memory=None)
        try:
            path = search.path(posed)
            rivals[method] = tuple(unit for step in path[: posed.num_steps(path)] for unit in step.remove)
        except InputError as error:
            # The search is done; what another method cannot do is no reason to throw its result away.
            print(f"not compared with {method}: {error}", file=sys.stderr)
    return rivals
