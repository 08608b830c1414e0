"""`tradeoff`: what one task can spare against what another can, and what each loses by the other's removals.

"A deeper look at depth pruning of LLMs" (arXiv 2407.16286, sections 4.3 and 5.2) finds that units matter differently to
different tasks. Here importance is what a task's margin, the right answer against the best wrong one, loses without a
unit, on some questions; the cross table is measured on others. Beside the correlation of two tasks stands that of each
with itself on other questions, since noise alone makes two tasks disagree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.calibration import Samples
from depthcut.methods.budget import Budget
from depthcut.process.workspace import check_output
from depthcut.run.heads import require_tokens
from depthcut.run.plan import make_ablation
from depthcut.run.recipe import Recipe
from depthcut.run.session import Loaded, find_model, load, prepare
from depthcut.studies.figures import PointFigure, two_measures
from depthcut.studies.importances import Importances, leave_one_out, single_removals
from depthcut.studies.ranks import ranks, spearman
from depthcut.studies.study import Cell, Study, Table, study_folder, write_study
from depthcut.types import InputError, Removal, Unit

OBJECTIVE = "task"


def tradeoff(
    recipe: Recipe,
    output: Path,
    *,
    tasks: Mapping[str, str],
    counts: Sequence[str] = ("25%",),
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
) -> Study:
    """Compares what two tasks or more need.

    Args:
        recipe: the model, the unit, and how many questions of each task decide; as many others measure.
        tasks: by name, SOURCE of a file of multiple-choice questions.
        counts: how many units the cross table removes, counts or shares.

    Returns:
        What `study.json` in the output holds.

    Raises:
        InputError: something cannot be done; found before weights load.
    """
    if len(tasks) < 2:
        raise InputError("a trade-off is between tasks; give two or more, each with --task NAME=FILE.jsonl")
    unit = recipe.unit or "block"
    if unit == "pair":
        raise InputError("tasks are compared unit by unit; give --unit block, attn, ffn or sublayer, not pair")
    check_output(output, overwrite=overwrite, resume=resume)
    source = find_model(recipe)
    require_tokens(source, "studies are")
    removals = single_removals(source.architecture, source.provenance.num_blocks, unit)
    if not removals:
        raise InputError(f"this family has no {unit} units; give another --unit")
    wanted = sorted({_count(text, len(removals)) for text in counts})
    num_questions = recipe.calibration_samples
    prepared = {}
    for name, questions in tasks.items():
        asked = {"method": "one-shot", "metric": OBJECTIVE, "remove": "1", "unit": unit, "calibration": questions}
        each = Recipe.build(**recipe.model_dump() | asked | {"calibration_samples": 2 * num_questions})
        each.check()
        prepared[name] = prepare(each, source, ("calibration",))
    settings = recipe.model_dump(mode="json", exclude={"method", "calibration"}) | {
        "tasks": dict(tasks),
        "unit": unit,
        "counts": list(counts),
    }
    with study_folder(output, settings, overwrite=overwrite, resume=resume) as folder:
        first = load(next(iter(prepared.values())))
        importances, held_out, texts = {}, {}, {}
        for name, posed in prepared.items():
            loaded = replace(first, recipe=posed.recipe, texts=posed.texts)
            deciding, measuring = _split(loaded, num_questions)
            importances[name] = leave_one_out(loaded, deciding, OBJECTIVE, removals, folder / f"{name}.jsonl")
            held_out[name] = make_ablation(loaded, measuring, OBJECTIVE, folder / f"{name}-measuring.jsonl")
            texts[f"{name}, deciding"] = deciding.description
            texts[f"{name}, measuring"] = measuring.description
        found = _Found(importances, held_out, wanted)
        model = source.provenance
        return write_study(
            folder,
            "trade-off",
            command=command,
            settings=settings,
            model=model,
            texts=texts,
            findings=found.findings(),
            tables=[found.correlations(), found.cross_table(), found.table()],
            figures=found.figures(model.name),
        )


def parse_tasks(words: Sequence[str]) -> dict[str, str]:
    """Reads `NAME=SOURCE`.

    Raises:
        InputError: a word is no such pair, or a name is given twice or is no file's name.
    """
    tasks = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or not source or not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"{word!r} names no task; write NAME=FILE.jsonl with letters, digits, - and _ in the name")
        if name in tasks:
            raise InputError(f"the task {name!r} is named twice; give each a name of its own")
        tasks[name] = source
    return tasks


def _count(text: str, num_units: int) -> int:
    """How many units a count or share is. Raises InputError where it is none, or leaves nothing."""
    budget = Budget.parse(text, None)
    count = int(budget.amount if budget.kind == "count" else math.floor(budget.amount * num_units + 0.5))
    if not 0 < count < num_units:
        raise InputError(f"cannot remove {text} of {num_units} units; give 1 to {num_units - 1} or a share")
    return count


def _split(loaded: Loaded, num_questions: int) -> tuple[Samples, Samples]:
    """The questions that decide, and those that measure."""
    samples = loaded.calibration
    assert samples.choices is not None
    return samples.split(samples.choices.rows[num_questions].start)


class _Found:
    """What the importances say, and the cross table, which is evaluated here."""

    def __init__(
        self, importances: dict[str, Importances], held_out: dict[str, Ablation], counts: Sequence[int]
    ) -> None:
        self.importances = importances
        self.pairs = list(itertools.combinations(importances, 2))
        self.dense = {name: _margins(ablation, ()) for name, ablation in held_out.items()}
        self.chosen: dict[int, dict[str, list[Removal]]] = {}
        self.margins: dict[tuple[int, str, str], torch.Tensor] = {}
        for count in counts:
            self.chosen[count] = {name: each.least(count) for name, each in importances.items()}
            for name, removed in self.chosen[count].items():
                units = [unit for removal in removed for unit in removal]
                for asked, ablation in held_out.items():
                    self.margins[count, name, asked] = _margins(ablation, units)

    def findings(self) -> list[str]:
        sentences = []
        for first, second in self.pairs:
            between = self._correlation(first, second)
            alone = " and ".join(f"{_told(self.importances[name].reliability)} for {name}" for name in (first, second))
            sentences.append(
                f"{first} and {second} rank units with a correlation of {_told(between)}; each with itself on other "
                f"questions: {alone}"
            )
            for count, chosen in self.chosen.items():
                common = len(set(chosen[first]) & set(chosen[second]))
                sentences.append(f"of {count} units that go, {first} and {second} agree on {common}")
        return sentences

    def _correlation(self, first: str, second: str) -> float | None:
        return spearman(self.importances[first].values, self.importances[second].values)

    def correlations(self) -> Table:
        names = list(self.importances)
        rows = tuple(
            (
                name,
                *(
                    self.importances[name].reliability if name == other else self._correlation(name, other)
                    for other in names
                ),
            )
            for name in names
        )
        return Table(
            name="correlations",
            title="Rank correlations of importance; on the diagonal of a task with itself on other questions",
            columns=("Task", *names),
            rows=rows,
        )

    def cross_table(self) -> Table:
        rows: list[tuple[Cell, ...]] = [
            (0, "nothing", asked, _accuracy(dense), None, None, None, "") for asked, dense in self.dense.items()
        ]
        for (count, name, asked), margins in self.margins.items():
            dense = self.dense[asked]
            change = (dense >= 0).double() - (margins >= 0).double()
            removed = " ".join(_names(self.chosen[count][name]))
            loss = float((margins - dense).mean())
            rows.append(
                (count, name, asked, _accuracy(margins), 100 * float(change.mean()), _error(change), loss, removed)
            )
        columns = (
            "Units removed",
            "Chosen for",
            "Asked",
            "Right, %",
            "Change, points",
            "±",
            "Margin lost, nats per token",
            "Removed",
        )
        return Table(
            name="cross", title="What each task loses by removals chosen for each", columns=columns, rows=tuple(rows)
        )

    def table(self) -> Table:
        names = list(self.importances)
        first = self.importances[names[0]]
        columns: list[str] = ["Unit"]
        for name in names:
            columns += [f"{name}: margin lost, nats per token", f"± {name}", f"Rank by {name}"]
        each = [
            list(zip(found.values, found.standard_errors, ranks(found.values).tolist(), strict=True))
            for found in self.importances.values()
        ]
        rows = tuple(
            (unit, *(cell for column in each for cell in column[place])) for place, unit in enumerate(first.names)
        )
        return Table(
            name="importance", title="Importance by task; rank 1 goes first", columns=tuple(columns), rows=rows
        )

    def figures(self, model: str) -> dict[str, PointFigure]:
        figures = {}
        for first, second in self.pairs:
            one, other = self.importances[first], self.importances[second]
            figures[f"{first}-{second}"] = two_measures(
                f"What {first} and {second} lose without each unit of {model}",
                f"{first}: margin lost, nats per token",
                f"{second}: margin lost, nats per token",
                one.names,
                one.values,
                other.values,
                [_kind(removal) for removal in one.removals],
            )
        return figures


@torch.no_grad()
def _margins(ablation: Ablation, units: Sequence[Unit]) -> torch.Tensor:
    """By question, how far the right answer is behind the best wrong one; negative where it is ahead."""
    return ablation.per_sequence([frozenset(units)], range(ablation.num_batches))[0]


def _accuracy(margins: torch.Tensor) -> float:
    return 100 * float((margins < 0).double().mean())


def _error(change: torch.Tensor) -> float | None:
    return 100 * float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else None


def _names(removals: Sequence[Removal]) -> list[str]:
    units = sorted(removals)
    return [str(removal[0]) if len(removal) == 1 else str(removal[0].layer) for removal in units]


def _kind(removal: Removal) -> str:
    return removal[0].kind if len(removal) == 1 else "block"


def _told(correlation: float | None) -> str:
    return "none" if correlation is None else f"{correlation:.2f}"
