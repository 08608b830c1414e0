"""`sweep`: quality after each removal of one path a method, repaired or not, and where it collapses.

The curves of UIDL (arXiv 2403.17887, figures 1 and 3) and "A deeper look at depth pruning of LLMs" (arXiv 2407.16286,
figures 2 and 3): every method's units leave in its own order, and every model on the way is measured on the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from depthcut.evaluation.collapse import find_collapse
from depthcut.process.progress import progress
from depthcut.process.workspace import check_output
from depthcut.run.heads import require_tokens
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load
from depthcut.studies.figures import Curve, CurveFigure
from depthcut.studies.paths import PosedMethod, check_methods, path_of, pose_method
from depthcut.studies.quality import Candidate, Measure, Quality, label, prepare_repairs, texts_of
from depthcut.studies.questions import NOT_REPAIRED
from depthcut.studies.study import Cell, Study, Table, study_folder, write_study
from depthcut.types import InputError, Plan


def sweep(
    recipe: Recipe,
    output: Path,
    *,
    methods: Sequence[str],
    every: int = 1,
    repairs: Sequence[str] = (NOT_REPAIRED,),
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
) -> Study:
    """Measures models along one path a method.

    Args:
        recipe: the model, the texts, the tasks, and in `remove` where the paths end.
        methods: whose paths are walked along.
        every: distance of the measured points, in units; the end of a path is always one.
        repairs: repairs to measure each point with; `none` is the model as it was cut.

    Returns:
        What `study.json` in the output holds.

    Raises:
        InputError: something cannot be done; found before weights load where that is possible.
    """
    if every < 1:
        raise InputError(f"points cannot lie {every} units apart; give --every 1 or more")
    check_methods(methods)
    check_output(output, overwrite=overwrite, resume=resume)
    source = find_model(recipe)
    require_tokens(source, "studies are")
    posed = [pose_method(recipe, source, name, {"end": {"remove": recipe.remove or ""}}) for name in methods]
    prepared = prepare_repairs(recipe, source, repairs)
    settings = recipe.model_dump(mode="json", exclude={"method"}) | {
        "methods": list(methods),
        "every": every,
        "repairs": list(repairs),
    }
    with study_folder(output, settings, overwrite=overwrite, resume=resume) as folder:
        loaded = load(prepared)
        paths = {method.name: path_of(loaded, method, folder) for method in posed}
        quality = Quality(loaded, folder / "measured.jsonl")
        points = {name: _points(plans, every) for name, plans in paths.items()}
        counts = sorted({count for plans in points.values() for count in plans})
        with progress("measuring", len(counts)) as advance:
            for count in counts:
                plans = [plans[count] for plans in points.values() if count in plans]
                quality.measure([Candidate(plan, repair) for plan in plans for repair in repairs])
                advance(1)
        found = _Found(posed, points, repairs, quality)
        return write_study(
            folder,
            "sweep",
            command=command,
            settings=settings,
            model=source.provenance,
            texts=texts_of(loaded),
            findings=found.findings(),
            tables=[found.table()],
            figures=found.figures(source.provenance.name),
        )


def _points(plans: dict[int, Plan], every: int) -> dict[int, Plan]:
    return {count: plan for count, plan in plans.items() if count % every == 0 or count == len(plans)}


class _Found:
    """The curves, when all is measured."""

    def __init__(
        self,
        methods: Sequence[PosedMethod],
        points: dict[str, dict[int, Plan]],
        repairs: Sequence[str],
        quality: Quality,
    ) -> None:
        self.points, self.quality = points, quality
        self.problems = {method.name: next(iter(method.problems.values())) for method in methods}
        self.lines = [(name, repair) for name in points for repair in repairs]

    def values(self, measure: Measure, name: str, repair: str) -> list[tuple[float, float]]:
        """Blocks removed, and the measure; a sublayer counts as its share of a block."""
        per_block = len(self.problems[name].architecture.branches)
        return [
            (0.0, self.quality.value(measure.name, None)),
            *(
                (len(plan.removed) / per_block, self.quality.value(measure.name, Candidate(plan, repair)))
                for plan in self.points[name].values()
            ),
        ]

    def collapse(self, measure: Measure, name: str, repair: str) -> int | None:
        """The index of the last point before the curve collapses."""
        points = self.values(measure, name, repair)
        found = find_collapse([x for x, _ in points], [measure.damage(y) for _, y in points])
        return None if found is None else found.place

    def findings(self) -> list[str]:
        sentences = []
        for measure in self.quality.measures:
            for name, repair in self.lines:
                place = self.collapse(measure, name, repair)
                points = self.values(measure, name, repair)
                told = f"{measure.short} of {label(name, repair)}"
                if place is None:
                    sentences.append(f"{told}: no collapse up to {points[-1][0]:g} blocks removed")
                    continue
                (last, value), after = points[place], points[place + 1]
                then = f"{value:.4g}, then {after[1]:.4g} at {after[0]:g}"
                sentences.append(f"{told}: collapses after {last:g} blocks removed ({then})")
        return sentences

    def table(self) -> Table:
        measures = self.quality.measures

        def measured(candidate: Candidate | None) -> list[float | None]:
            return [cell for measure in measures for cell in self.quality.with_error(measure.name, candidate)]

        rows: list[tuple[Cell, ...]] = [("dense", "", 0, 0.0, *measured(None))]
        for name, repair in self.lines:
            sizes = self.problems[name].sizes
            for count, plan in self.points[name].items():
                share = 100 * (1 - sizes.parameters_without(plan.removed) / sizes.parameters)
                rows.append((name, repair, count, share, *measured(Candidate(plan, repair))))
        heads = [head for measure in measures for head in (measure.label, f"± {measure.short}")]
        columns = ("Method", "Repair", "Units removed", "Parameters removed, %", *heads)
        return Table(name="sweep", title="Every point", columns=columns, rows=tuple(rows))

    def figures(self, model: str) -> dict[str, CurveFigure]:
        names = list(self.points)
        figures = {}
        for measure in self.quality.measures:
            curves = tuple(
                Curve(
                    name=label(name, repair),
                    points=tuple(self.values(measure, name, repair)),
                    colour=names.index(name),
                    collapse=self.collapse(measure, name, repair),
                    is_dashed=repair != NOT_REPAIRED,
                )
                for name, repair in self.lines
            )
            figures[measure.file_name] = CurveFigure(
                title=f"{measure.short} of {model} after each removal; a ring is the last before a collapse",
                x_label="blocks removed",
                y_label=measure.label,
                is_log=measure.is_log,
                curves=curves,
            )
        return figures
