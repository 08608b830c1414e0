"""What commands print: tables of what was measured and of what a run would take, and what a run has made."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.results import Measurement
from depthcut.types import InputError, Plan, ScoreTable

if TYPE_CHECKING:
    from rich.table import Table

    from depthcut.preview.dry_run import Preview
    from depthcut.preview.outlook import Outlook
    from depthcut.run.recipe import Recipe
    from depthcut.run.result import Result
    from depthcut.studies.study import Study

LOG_WIDTH = 200
"""Characters a line where the output is no terminal that says how wide it is."""


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """The models beside each other; ± is the standard error, of a difference that of the paired items."""
    from depthcut.report import before_after, columns, is_task, task_table
    from depthcut.report.answer import HEAD_DISTANCES
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
        for name in ("perplexity", *HEAD_DISTANCES, "prompt_tokens_per_second"):
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


def removal_names(plan: Plan) -> list[str]:
    """The removed units in order of removal; a whole block by its number."""
    names = []
    for step in plan.steps:
        if step.applied:
            layers = sorted({unit.layer for unit in step.remove})
            whole = plan.unit == "block"
            names += [str(layer) for layer in layers] if whole else ["+".join(str(unit) for unit in step.remove)]
    return names


def print_plan(plan: Plan) -> None:
    """What a plan removes."""
    print(f"\nremoved ({plan.unit}, {plan.method}): {' '.join(removal_names(plan)) or 'nothing'}\n")


def print_outlook(found: Outlook | None) -> None:
    """About how long a run will take; nothing where it is short."""
    if found is not None:
        most = max(found.stages, key=lambda name: found.stages[name])
        print(
            f"this run takes about {duration_text(found.seconds)} on {found.device}, "
            f"{duration_text(found.stages[most])} of it to {most}; timing, tasks and exports aside",
            file=sys.stderr,
        )


def print_preview(found: Preview, recipe: Recipe) -> None:
    """What a run would remove, and what each of its stages takes in work, memory and time."""
    from depthcut.preview.device_profiles import UTILISATION

    model, problem, plan, expected = found.source.provenance, found.problem, found.plan, found.estimate
    print(f"model       {model.source}: {model.model_type}, {model.num_blocks} blocks, {model.dtype}")
    if not found.source.has_weights:
        print("            no weights here: estimated from the configuration")
    sizes = problem.sizes
    if plan is None:
        print(f"removes     what a search finds: {problem.budget} by {problem.unit} units, method {recipe.method}")
        print(f"parameters  {sizes.parameters:,} before")
        print(f"KV cache    {sizes.kv_bytes_per_token:,} bytes a token before")
    else:
        print(f"removes     {' '.join(removal_names(plan)) or 'nothing'}")
        print(f"parameters  {sizes.parameters:,} -> {sizes.parameters_without(plan.removed):,}")
        kv_bytes = sizes.kv_bytes_without(plan.removed)
        print(f"KV cache    {sizes.kv_bytes_per_token:,} -> {kv_bytes:,} bytes a token")
    about = "" if plan else "about "
    after = (
        "what the ceiling leaves" if expected.pruned_bytes is None else f"{about}{bytes_text(expected.pruned_bytes)}"
    )
    print(f"weights     {bytes_text(expected.weight_bytes)} -> {after}, which the output takes")
    decoding = [
        f"{bytes_text(dense)}{'' if pruned is None else f' -> {bytes_text(pruned)}'} at {context:,}"
        for context, (dense, pruned) in found.decoding_bytes.items()
    ]
    print(f"decoding    weights and cache: {'; '.join(decoding)} tokens")
    _print(_phases(found, recipe))
    program = f", {bytes_text(found.program_bytes)} of it Python and libraries" if found.program_bytes else ""
    device, several = found.device, f"{found.num_devices} x " if found.num_devices > 1 else ""
    speed = "measured" if device.is_here else f"{UTILISATION:.0%} of the peak"
    print(
        f"memory      {bytes_text(expected.memory_bytes(found.device) + found.program_bytes)}{program}; "
        + ("all weights fit" if expected.held_bytes is None else "the weights come in for every sweep")
    )
    print(
        f"time        {duration_text(3600 * expected.hours(device, found.num_devices))} on {several}{device.name} at "
        f"{device.flops_per_second / 1e12:.3g} TFLOP/s ({speed}); timing, tasks and exports aside"
    )
    print("nothing was written (dry run)")


def _phases(found: Preview, recipe: Recipe) -> Table:
    table = _table(["forward passes", "unit evaluations", "TFLOP", "memory beside weights", "time"])
    texts = {
        "score": (recipe.calibration_samples, recipe.calibration_length),
        "search": (recipe.calibration_samples, recipe.calibration_length),
        "repair": (recipe.num_repair_samples, recipe.calibration_length),
        "evaluate": (recipe.evaluation_samples, recipe.evaluation_length),
    }
    for phase in found.estimate.phases:
        samples = f" ({texts[phase.name][0]} x {texts[phase.name][1]} tokens)" if phase.name in texts else ""
        seconds = found.estimate.seconds(phase, found.device, found.num_devices)
        table.add_row(
            phase.name + samples,
            f"{phase.forward_passes:.1f}",
            f"{phase.unit_evaluations:,}",
            f"{phase.flops / 1e12:,.4g}",
            bytes_text(phase.working_bytes + phase.host_bytes),
            duration_text(seconds),
        )
    return table


def bytes_text(count: float) -> str:
    """In units of 1000, as disks and data sheets count."""
    for name in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {name}"
        count /= 1000
    return f"{count:.3g} TB"


def duration_text(seconds: float) -> str:
    """A time as people say it, to two digits."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _label(label: str, data: str) -> str:
    """A row's label with its text's name, for rows that differ in nothing else."""
    return f"{label} ({data.partition(' (')[0].rpartition('/')[2]})"


def _table(heads: Sequence[str], first: str = "") -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first, justify="right" if first else "left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)


def print_result(result: Result, output: Path) -> None:
    """Prints what a run found and wrote, and where."""
    from depthcut.model.heads import head_of_model
    from depthcut.model.paging import pager_of
    from depthcut.report.answer import kind_note

    print_plan(result.plan)
    print_measurements(result.measurements)
    for repair in result.repairs:
        outcome = "" if repair.kept else "; it did not help and was undone"
        print(
            f"{repair.method}: {repair.objective} {repair.before:.3f} -> {repair.after:.3f} on held-out text of the "
            f"kind repaired on ({repair.held_out.source}){outcome}"
        )
    measured = next((found.data for found in result.measurements if found.name == "perplexity"), "")
    if note := kind_note(result.plan, result.repairs, measured):
        print(f"measured on {measured.partition(' (')[0]}, {note}")
    paged = pager_of(result.model) is not None
    equal = "tensors equal bit for bit, logits to rounding" if paged else "logits equal bit for bit"
    decoded = ", greedy tokens equal with and without cache" if head_of_model(result.model) == "tokens" else ""
    print(f"\nreloaded in a fresh process: {equal}{decoded}")
    print(f"model and report.html written to {output}")


def print_scores(table: ScoreTable) -> None:
    """Every metric of every block."""
    blocks = [scores for scores in table.scores if scores.unit == "block"]
    view = _table([scores.metric for scores in blocks], "block")
    for layer in range(table.model.num_blocks):
        view.add_row(str(layer), *(f"{scores.values[str(layer)]:.4f}" for scores in blocks))
    _print(view)


def print_study(found: Study, output: Path) -> None:
    """What was found in sentences, and where the rest is."""
    print("\n".join(found.findings))
    print(f"\ntables and data written to {output}; study.html shows them with the figures")


def command_line() -> str:
    """What the user typed, for the files that say how a result was made."""
    return shlex.join(["depthcut", *sys.argv[1:]])


def is_rank() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def require_alone(what: str) -> None:
    """Raises InputError where several ranks would each do what is not divided among them."""
    if is_rank():
        raise InputError(f"{what} is not divided among ranks; run it without torchrun (prune and search are)")
