"""The pages for people: one self-contained HTML file that needs no network and opens from disk.

`report.html` shows one run, another page several runs side by side, `study.html` a study. Numbers are written into a
page twice: as tables, by the template, so that they can be read without a script; and as JSON, for the figures that the
scripts in `figures/` draw. Whatever text a model, a prompt or a command brings cannot run: the template escapes it, the
JSON holds no `<`, the scripts set text only, and the page's content security policy allows exactly the scripts hashed
here and no connection.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from depthcut.evaluation.collapse import find_collapse
from depthcut.report.answer import answer
from depthcut.report.provenance import provenance, repair_row
from depthcut.report.removal import headline, path_rows, shares_removed
from depthcut.report.run import Run
from depthcut.report.samples import samples_by_prompt
from depthcut.report.scores import nearest_windows, score_grids
from depthcut.report.side_by_side import RunCurve, answers, check_runs, differing_texts, joined, run_curves
from depthcut.report.table import before_after, columns, data_notes, dense_parameters
from depthcut.report.tasks import TaskScore, is_task, retained_average, task_results, task_table
from depthcut.results import DECODING_BYTES, Measurement, Repair
from depthcut.types import Plan, Record, ScoreTable

FIGURES = ("words", "charts", "curves", "tasks")
"""Scripts of every page, in order; those of one page follow."""
RUN_FIGURES = (*FIGURES, "windows", "model", "map", "scores", "steps", "path", "memory", "angular", "training", "page")
RUNS_FIGURES = (*FIGURES, "runs")


class DecodingMemory(Record):
    """Bytes that weights and cache of both models take after so many tokens of one sequence."""

    context: int
    dense: float
    pruned: float


class PageData(Record):
    """What the figures of `report.html` draw: `<script type="application/json" id="data">`.

    Attributes:
        memory: by context, the shortest first.
        collapse: the number of steps before the objective collapses, None where it does not.
        apply_command: makes the model of another number of steps; only `--steps` is left to add.
    """

    plan: Plan
    scores: ScoreTable | None
    measurements: tuple[Measurement, ...]
    repairs: tuple[Repair, ...]
    tasks: tuple[TaskScore, ...]
    memory: tuple[DecodingMemory, ...]
    collapse: int | None
    apply_command: str


class RunsData(Record):
    """What the figures of a page of several runs draw."""

    runs: tuple[RunCurve, ...]
    tasks: tuple[TaskScore, ...]


def write_report(path: Path, run: Run) -> None:
    """Writes the page of one run.

    Raises:
        InputError: the plan removes a unit whose size it does not hold.
    """
    run.require_sizes()
    plan, measurements = run.plan, run.measurements
    whole, memory = dense_parameters(measurements), decoding_memory(measurements)
    elsewhere = {DECODING_BYTES} if memory else set()  # what has a table of its own
    of_the_model = [row for row in measurements if not is_task(row) and row.name not in elsewhere]
    rows, tasks = before_after(of_the_model), task_table(measurements)
    collapse = collapse_step(plan)
    data = PageData(
        plan=plan,
        scores=run.scores,
        measurements=tuple(measurements),
        repairs=tuple(run.repairs),
        tasks=tuple(task_results(measurements)),
        memory=memory,
        collapse=collapse,
        apply_command=run.apply_command,
    )
    write_page(
        path,
        "page.html.j2",
        data,
        RUN_FIGURES,
        plan=plan,
        headline=headline(plan),
        figures=answer(plan, rows, retained_average(measurements), run.repairs),
        command=run.command,
        heads=columns(of_the_model),
        rows=rows,
        notes=data_notes(rows),
        tasks=tasks,
        task_notes=data_notes(tasks.rows),
        has_task_figure=bool(data.tasks),
        memory=memory,
        path=path_rows(plan, whole),
        collapse=collapse,
        shares_known=whole is not None,
        has_curve=any(step.objective is not None for step in plan.steps),
        grids=score_grids(run.scores, plan) if run.scores else [],
        repairs=[repair_row(repair) for repair in run.repairs],
        windows=nearest_windows(run.scores.angular) if run.scores else [],
        samples=samples_by_prompt(run.generation),
        facts=provenance(plan, measurements, run.software, run.repairs),
    )


def write_comparison(path: Path, runs: Sequence[Run]) -> None:
    """Writes one page of several runs side by side: the answers, the curves of their searches, and their tasks.

    Raises:
        InputError: fewer than two runs, two of one name, or a plan that does not hold the sizes of its units.
    """
    check_runs(runs)
    heads, answered = answers(runs)
    curves = run_curves(runs, [collapse_step(run.plan) for run in runs])
    measurements = joined(runs)
    of_the_models = [measurement for measurement in measurements if not is_task(measurement)]
    rows, tasks = before_after(of_the_models), task_table(measurements)
    data = RunsData(runs=tuple(curves), tasks=tuple(task_results(measurements)))
    write_page(
        path,
        "runs.html.j2",
        data,
        RUNS_FIGURES,
        models=list(dict.fromkeys(run.plan.model.source for run in runs)),
        answers=heads,
        runs=answered,
        texts_differ=differing_texts(runs),
        heads=columns(of_the_models),
        rows=rows,
        notes=data_notes(rows),
        objectives=list(dict.fromkeys(curve.objective for curve in curves if curve.points)),
        curves=curves,
        commands=[(run.name, run.command) for run in runs],
        tasks=tasks,
        task_notes=data_notes(tasks.rows),
        has_task_figure=bool(data.tasks),
    )


def collapse_step(plan: Plan) -> int | None:
    """The number of steps before the objective collapses; None where it does not, or there is no curve."""
    points = [
        (share, step.objective, order)
        for order, (share, step) in enumerate(zip(shares_removed(plan), plan.steps, strict=True), start=1)
        if step.objective is not None
    ]
    found = find_collapse([share for share, _, _ in points], [objective for _, objective, _ in points])
    return None if found is None else points[found.place][2]


def decoding_memory(measurements: Sequence[Measurement]) -> tuple[DecodingMemory, ...]:
    """What decoding takes by context, where it is known of both models at several."""
    known: dict[int, dict[str, float]] = {}
    for row in measurements:
        if row.name == DECODING_BYTES and (context := row.data.partition(" ")[0]).isdecimal():
            known.setdefault(int(context), {})[row.model] = row.value
    points = [(context, of) for context, of in sorted(known.items()) if {"dense", "pruned"} <= of.keys()]
    if len(points) < 2:
        return ()
    return tuple(DecodingMemory(context=context, dense=of["dense"], pruned=of["pruned"]) for context, of in points)


def json_for_script(record: Record) -> Markup:
    """A record as JSON that stands inside a script element: without `<` nothing can end or open one."""
    return Markup(record.model_dump_json().replace("<", "\\u003c"))


def unbroken(text: str) -> str:
    """A number that a narrow column may break before its standard error, and nowhere else."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}±", " ±")


def write_page(path: Path, template: str, data: Record, names: Sequence[str], /, **values: object) -> None:
    """Writes a page.

    Args:
        template: of this folder.
        data: what the page's scripts draw.
        names: the scripts of `figures/` that the page needs, in order.
        values: what the template names.
    """
    scripts = [
        _with_license("vendor/d3.min.js", "vendor/LICENSE.d3.txt"),
        _with_license("vendor/plot.umd.min.js", "vendor/LICENSE.plot.txt"),
        _joined(names),
    ]
    environment = Environment(
        loader=PackageLoader("depthcut.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    page = environment.get_template(template).render(
        **values,
        data=json_for_script(data),
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=Markup(" ".join(_hash(script) for script in scripts)),
    )
    # A page whose line ends were translated would not match the hashes of its own policy.
    path.write_text(page, encoding="utf-8", newline="\n")


def _joined(names: Sequence[str]) -> str:
    """The scripts of the figures as one, whose names stay its own."""
    parts = "\n".join(_resource(f"figures/{name}.js") for name in names)
    return f'"use strict";\n{{\n{parts}}}\n'


def _resource(name: str) -> str:
    return resources.files("depthcut.report").joinpath(name).read_text(encoding="utf-8")


def _with_license(script: str, license_file: str) -> str:
    return f"/*\n{_resource(license_file)}*/\n{_resource(script)}"


def _hash(script: str) -> str:
    """The source expression that lets a content security policy run exactly this inline script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
