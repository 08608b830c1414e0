"""`inspect`: how a model's units matter and which of them a method takes: by kind, by depth, in which order.

Block Influence against what the loss rises by (the question behind ShortGPT, arXiv 2403.03853, and "A deeper look at
depth pruning of LLMs", arXiv 2407.16286), the angular distance of every window of blocks (UIDL, arXiv 2403.17887,
figure 4), and FinerCut's inspection of what was removed (arXiv 2405.18218, section 4.4: types, positions and runs).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from depthcut.importance import BLOCK_INFLUENCE, metric_name
from depthcut.process.workspace import check_output
from depthcut.run.heads import require_tokens
from depthcut.run.plan import score_units
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, prepare
from depthcut.studies.figures import Figure, Point, PointFigure, WindowFigure, two_measures
from depthcut.studies.importances import Importances, leave_one_out, single_removals
from depthcut.studies.paths import path_of, pose_method
from depthcut.studies.quality import texts_of
from depthcut.studies.ranks import ranks, spearman
from depthcut.studies.study import Cell, Study, Table, study_folder, write_study
from depthcut.types import InputError, Plan, ScoreTable, Unit, UnitChoice

OBJECTIVE = "loss"
DEPTHS = ("first third", "middle third", "last third")


def inspect(recipe: Recipe, output: Path, *, overwrite: bool = False, resume: bool = False, command: str = "") -> Study:
    """Looks at a model and at the path of one method.

    Args:
        recipe: the model, the calibration text, and the method with its unit and amount.

    Returns:
        What `study.json` in the output holds.

    Raises:
        InputError: something cannot be done; found before weights load.
    """
    check_output(output, overwrite=overwrite, resume=resume)
    source = find_model(recipe)
    require_tokens(source, "studies are")
    method = pose_method(recipe, source, recipe.method, {"end": {"remove": recipe.remove or ""}})
    if recipe.asks_questions:
        raise InputError(f"method {recipe.method!r} asks questions, and this study is on text; choose another --method")
    prepared = prepare(recipe, source, ("calibration",))
    settings = recipe.model_dump(mode="json")
    with study_folder(output, settings, overwrite=overwrite, resume=resume) as folder:
        loaded = load(prepared)
        scores, _ = score_units(loaded, folder)
        architecture, num_blocks = source.architecture, source.provenance.num_blocks
        importances: dict[UnitChoice, Importances] = {}
        units: tuple[UnitChoice, ...] = ("block", "sublayer") if len(architecture.branches) > 1 else ("sublayer",)
        for unit in units:
            removals = single_removals(architecture, num_blocks, unit)
            importances[unit] = leave_one_out(loaded, loaded.calibration, OBJECTIVE, removals, folder / "loss.jsonl")
        path = path_of(loaded, method, folder)
        model = source.provenance
        found = _Found(scores, importances, path[max(path)], model.num_blocks, architecture.units(num_blocks))
        return write_study(
            folder,
            "inspection",
            command=command,
            settings=settings,
            model=model,
            texts=texts_of(loaded),
            findings=found.findings(),
            tables=found.tables(),
            figures=found.figures(model.name),
        )


class _Found:
    """What is known of the units, and what a plan does with them."""

    def __init__(
        self,
        scores: ScoreTable,
        importances: dict[UnitChoice, Importances],
        plan: Plan,
        num_blocks: int,
        units: Sequence[Unit],
    ) -> None:
        self.scores, self.importances, self.plan = scores, importances, plan
        self.num_blocks, self.units = num_blocks, units
        self.orders = {unit: order for order, step in enumerate(plan.steps, start=1) for unit in step.remove}

    def _static(self, unit: UnitChoice) -> list[float]:
        kind = "block" if unit == "block" else "sublayer"
        values = self.scores.find(metric_name(BLOCK_INFLUENCE, kind), kind).values  # type: ignore[arg-type]
        return [values[name] for name in self.importances[unit].names]

    def findings(self) -> list[str]:
        sentences = []
        for unit, found in self.importances.items():
            correlation = spearman(self._static(unit), found.values)
            sentences.append(
                f"{_metric(unit)} ranks {unit}s like the rise of the loss without each with a correlation of "
                f"{_told(correlation)}; the rise itself on other sequences with {_told(found.reliability)}"
            )
        kinds = [f"{sum(unit.kind == kind for unit in self.orders)} {kind}" for kind in self._kinds()]
        sentences.append(f"{self.plan.method} removes {' and '.join(kinds)} in {len(self._runs(self.units))} runs")
        for kind in self._kinds():
            longest = max(self._runs([unit for unit in self.units if unit.kind == kind]), key=len, default=[])
            if len(longest) > 1:
                sentences.append(f"its longest run of {kind} is {_span(longest)}, {len(longest)} blocks")
        return sentences

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(unit.kind for unit in self.units))

    def _runs(self, among: Sequence[Unit]) -> list[list[Unit]]:
        """The removed ones among some units, those that follow each other there together."""
        runs: list[list[Unit]] = []
        previous = None
        for place, unit in enumerate(among):
            if unit not in self.orders:
                continue
            if previous is not None and place == previous + 1:
                runs[-1].append(unit)
            else:
                runs.append([unit])
            previous = place
        return runs

    def tables(self) -> list[Table]:
        return [
            *(self._units(unit) for unit in self.importances),
            self._least_windows(),
            self._windows(),
            self._path(),
            self._positions(),
            self._run_table(),
        ]

    def _units(self, unit: UnitChoice) -> Table:
        found = self.importances[unit]
        static = self._static(unit)
        cells = zip(
            found.names,
            static,
            ranks(static).tolist(),
            found.values,
            found.standard_errors,
            ranks(found.values).tolist(),
            strict=True,
        )
        rows = tuple(
            (*row, ", ".join(dict.fromkeys(str(self.orders[each]) for each in removal if each in self.orders)))
            for row, removal in zip(cells, found.removals, strict=True)
        )
        columns = (
            unit.capitalize(),
            _metric(unit),
            f"Rank by {_metric(unit)}",
            "Loss risen by, nats per token",
            "±",
            "Rank by loss",
            "Step",
        )
        return Table(name=f"{unit}s", title=f"Every {unit}; rank 1 matters least", columns=columns, rows=rows)

    def _least_windows(self) -> Table:
        rows = []
        for size in range(1, self.num_blocks + 1):
            start = min(range(self.num_blocks - size + 1), key=lambda first: self.scores.angular[first][size - 1])
            rows.append((size, f"{start}–{start + size - 1}", self.scores.angular[start][size - 1]))
        return Table(
            name="least-windows",
            title="The window of each number of blocks that turns the stream least",
            columns=("Blocks", "Window", "Angular distance"),
            rows=tuple(rows),
        )

    def _windows(self) -> Table:
        rows = tuple(
            (start, size, distance)
            for start, row in enumerate(self.scores.angular)
            for size, distance in enumerate(row, start=1)
        )
        columns = ("First block", "Blocks", "Angular distance")
        return Table(name="windows", title="Every window of blocks", columns=columns, rows=rows, listed=False)

    def _path(self) -> Table:
        rows = tuple(
            (order, " ".join(map(str, step.remove)), step.objective)
            for order, step in enumerate(self.plan.steps, start=1)
        )
        columns = ("Step", "Removed", self.plan.objective or "Objective")
        return Table(name="path", title=f"The path of {self.plan.method}", columns=columns, rows=rows)

    def _positions(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for kind in self._kinds():
            third = [3 * unit.layer // self.num_blocks for unit in self.orders if unit.kind == kind]
            steps = [order for unit, order in self.orders.items() if unit.kind == kind]
            mean_step = sum(steps) / len(steps) if steps else None
            rows.append((kind, *(third.count(place) for place in range(3)), len(steps), mean_step))
        columns = ("Kind", *(f"In the {depth}" for depth in DEPTHS), "Altogether", "Mean step")
        return Table(name="positions", title="Which kind goes where, and when", columns=columns, rows=tuple(rows))

    def _run_table(self) -> Table:
        kinds = self._kinds()
        groups = {kind: [unit for unit in self.units if unit.kind == kind] for kind in kinds}
        groups |= {"any": list(self.units)} if len(kinds) > 1 else {}
        rows = tuple((kind, _span(run), len(run)) for kind, among in groups.items() for run in self._runs(among))
        title = "Removed sublayers that follow each other: of one kind in neighbouring blocks, and of any"
        return Table(name="runs", title=title, columns=("Kind", "Run", "Sublayers"), rows=rows)

    def figures(self, model: str) -> dict[str, Figure]:
        figures: dict[str, Figure] = {
            f"{unit}s": two_measures(
                f"{_metric(unit)} of every {unit} of {model} against the loss without it",
                _metric(unit),
                "loss risen by, nats per token",
                found.names,
                self._static(unit),
                found.values,
                [removal[0].kind if unit == "sublayer" else "" for removal in found.removals],
            )
            for unit, found in self.importances.items()
        }
        figures["windows"] = WindowFigure(
            title=f"Angular distance across every window of blocks of {model}",
            measure="distance",
            rows=self.scores.angular,
        )
        figures["path"] = PointFigure(
            title=f"What {self.plan.method} removes from {model}, and when",
            x_label="step",
            y_label="block",
            points=tuple(
                Point(name=str(unit), x=order, y=unit.layer, group=unit.kind) for unit, order in self.orders.items()
            ),
            may_be_log=False,
        )
        return figures


def _metric(unit: UnitChoice) -> str:
    return "Block Influence" if unit == "block" else "Cosine distance"


def _span(run: Sequence[Unit]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}"


def _told(correlation: float | None) -> str:
    return "none" if correlation is None else f"{correlation:.2f}"
