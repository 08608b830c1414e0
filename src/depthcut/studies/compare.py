"""`compare`: methods against each other where each removes the same shares of the parameters, on the same texts.

The tables of FinerCut (arXiv 2405.18218, table 1) and ShortGPT (arXiv 2403.03853, table 2): every method sees the same
calibration text and plans each amount as `prune` would. Units differ in size, so shares are met from above by less than
one unit; the tables say what was removed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from depthcut.process.progress import progress
from depthcut.process.workspace import check_output
from depthcut.run.heads import require_tokens
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load
from depthcut.studies.figures import Curve, CurveFigure
from depthcut.studies.paths import PosedMethod, check_methods, plans_of, pose_method
from depthcut.studies.quality import Candidate, Measure, Quality, label, prepare_repairs, texts_of
from depthcut.studies.questions import NOT_REPAIRED
from depthcut.studies.study import Cell, Study, Table, study_folder, write_study
from depthcut.types import InputError, Plan, Unit


def compare(
    recipe: Recipe,
    output: Path,
    *,
    methods: Sequence[str],
    ratios: Sequence[str],
    repairs: Sequence[str] = (NOT_REPAIRED,),
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
) -> Study:
    """Measures every method at every share of the parameters.

    Args:
        recipe: the model, the texts and the tasks.
        ratios: shares of the parameters to remove, such as `25%`.
        repairs: repairs to measure each pruned model with; `none` is the model as it was cut.

    Returns:
        What `study.json` in the output holds.

    Raises:
        InputError: something cannot be done; found before weights load where that is possible.
    """
    check_methods(methods)
    budgets = budgets_of(ratios)
    check_output(output, overwrite=overwrite, resume=resume)
    source = find_model(recipe)
    require_tokens(source, "studies are")
    posed = [pose_method(recipe, source, name, budgets) for name in methods]
    first = next(iter(posed[0].recipes.values()))
    prepared = prepare_repairs(first, source, repairs)
    settings = recipe.model_dump(mode="json", exclude={"method"}) | {
        "methods": list(methods),
        "ratios": list(ratios),
        "repairs": list(repairs),
    }
    with study_folder(output, settings, overwrite=overwrite, resume=resume) as folder:
        loaded = load(prepared)
        plans = {method.name: plans_of(loaded, method, folder) for method in posed}
        quality = Quality(loaded, folder / "measured.jsonl")
        with progress("measuring", len(ratios)) as advance:
            for ratio in ratios:
                quality.measure([Candidate(each[ratio], repair) for each in plans.values() for repair in repairs])
                advance(1)
        found = _Found(posed, plans, repairs, quality)
        return write_study(
            folder,
            "compare",
            command=command,
            settings=settings,
            model=source.provenance,
            texts=texts_of(loaded),
            findings=found.findings(),
            tables=[*found.wide_tables(), found.table()],
            figures=found.figures(source.provenance.name),
        )


def budgets_of(ratios: Sequence[str]) -> dict[str, dict[str, str]]:
    """By ratio, the budget that asks for it.

    Raises:
        InputError: one is no share of the parameters, or two are the same.
    """
    budgets = {ratio: {"budget": f"parameters={1 - _share(ratio):.6g}"} for ratio in ratios}
    if not budgets or len(budgets) < len(ratios):
        raise InputError(f"the ratios {', '.join(ratios) or 'given'} are not one or more different ones; write 10%,25%")
    return budgets


def _share(ratio: str) -> float:
    """Reads `25%`. Raises InputError on anything else, and on none or all."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", ratio)
    if match is None or not 0 < float(match[1]) < 100:
        raise InputError(f"{ratio!r} is no share of the parameters; write one above 0% and below 100%, such as 25%")
    return float(match[1]) / 100


class _Found:
    """The tables, when all is measured."""

    def __init__(
        self,
        methods: Sequence[PosedMethod],
        plans: dict[str, dict[str, Plan]],
        repairs: Sequence[str],
        quality: Quality,
    ) -> None:
        self.plans, self.quality = plans, quality
        problem = next(iter(methods[0].problems.values()))
        self.sizes, self.per_block = problem.sizes, len(problem.architecture.branches)
        self.lines = [(name, repair) for name in plans for repair in repairs]

    def _value(self, measure: Measure, name: str, repair: str, ratio: str) -> float:
        return self.quality.value(measure.name, Candidate(self.plans[name][ratio], repair))

    def _removed(self, name: str, ratio: str) -> float:
        removed = self.plans[name][ratio].removed
        return 100 * (1 - self.sizes.parameters_without(removed) / self.sizes.parameters)

    @property
    def ratios(self) -> list[str]:
        return list(next(iter(self.plans.values())))

    def findings(self) -> list[str]:
        """The best line of every ratio by every measure."""
        sentences = []
        for measure in self.quality.measures:
            for ratio in self.ratios:
                damages = {line: measure.damage(self._value(measure, *line, ratio)) for line in self.lines}
                best = min(damages, key=damages.__getitem__)
                value = self._value(measure, *best, ratio)
                sentences.append(f"{measure.short} without {ratio}: best is {label(*best)}, {value:.4g}")
        return sentences

    def wide_tables(self) -> list[Table]:
        """One table a measure as papers have them: a row a method, a column a ratio."""
        tables = []
        for measure in self.quality.measures:
            dense = self.quality.value(measure.name, None)
            rows: list[tuple[Cell, ...]] = [("dense", "", *([dense] * len(self.ratios)))]
            rows += [
                (name, repair, *(self._value(measure, name, repair, ratio) for ratio in self.ratios))
                for name, repair in self.lines
            ]
            columns = ("Method", "Repair", *(f"−{ratio}" for ratio in self.ratios))
            tables.append(Table(name=measure.file_name, title=measure.label, columns=columns, rows=tuple(rows)))
        return tables

    def table(self) -> Table:
        rows: list[dict[str, Cell]] = []
        for name, repair in self.lines:
            for ratio, plan in self.plans[name].items():
                values = {row.name: row for row in self.quality.of(Candidate(plan, repair))}
                loss, kl = values["loss/difference"], values["kl_to_dense"]
                rows.append(
                    {
                        "Method": name,
                        "Repair": repair,
                        "Ratio": ratio,
                        "Unit": plan.unit,
                        "Parameters removed, %": self._removed(name, ratio),
                        "Loss over dense, nats per token": loss.value,
                        "± loss": loss.stderr,
                        "KL to dense, nats per token": kl.value,
                        "± KL": kl.stderr,
                        "Found in, s": plan.cost.seconds,
                        "Removed": " ".join(self._short(plan.removed)),
                    }
                )
        return Table.of("compare", "Every model", rows)

    def _short(self, removed: Sequence[Unit]) -> list[str]:
        """The removed units in order; a whole block by its number."""
        layers = Counter(unit.layer for unit in removed)
        whole = {layer for layer, count in layers.items() if count == self.per_block}
        names = (str(unit.layer) if unit.layer in whole else str(unit) for unit in removed)
        return list(dict.fromkeys(names))

    def figures(self, model: str) -> dict[str, CurveFigure]:
        names = list(self.plans)
        figures = {}
        for measure in self.quality.measures:
            dense = self.quality.value(measure.name, None)
            curves = []
            for name, repair in self.lines:
                points = [(self._removed(name, each), self._value(measure, name, repair, each)) for each in self.ratios]
                curves.append(
                    Curve(
                        name=label(name, repair),
                        points=((0.0, dense), *sorted(points)),
                        colour=names.index(name),
                        is_dashed=repair != NOT_REPAIRED,
                    )
                )
            figures[measure.file_name] = CurveFigure(
                title=f"{measure.short} of {model} by method at equal parameters",
                x_label="parameters removed, %",
                y_label=measure.label,
                is_log=measure.is_log,
                curves=tuple(curves),
            )
        return figures
