"""`depthcut search`, `remove` and `repair`: stages of a run by themselves, on a model or on what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.commands.options import (
    BatchSize,
    BudgetOption,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Device,
    Dtype,
    Evaluation,
    EvaluationLength,
    EvaluationSamples,
    Forms,
    MaxForwards,
    MaxIncrease,
    MemoryBudget,
    Method,
    Metric,
    Model,
    ObjectiveOption,
    Output,
    Overwrite,
    Protect,
    PushToHub,
    Remove,
    Repair,
    RepairSamples,
    RepairText,
    Revision,
    SaveDtype,
    SearchOption,
    Seed,
    Speed,
    Swap,
    TrustRemoteCode,
    UnitOption,
    recipe_of,
)
from depthcut.commands.terminal import command_line, print_plan, print_result
from depthcut.commands.upload import require_token, upload
from depthcut.types import Plan

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that prune, apply or remove wrote.")]


def search(
    context: typer.Context,
    model: Model,
    output_dir: Output,
    method: Method = "greedy",
    metric: Metric = None,
    objective: ObjectiveOption = None,
    search: SearchOption = None,
    swap: Swap = None,
    max_forwards: MaxForwards = None,
    unit: UnitOption = None,
    remove: Remove = None,
    budget: BudgetOption = None,
    max_increase: MaxIncrease = None,
    protect: Protect = "",
    calibration: Calibration = "stdlib",
    calibration_samples: CalibrationSamples = 16,
    calibration_length: CalibrationLength = 512,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search.")] = False,
) -> None:
    """Find what can go, and write plan.json for apply; no model is written."""
    from depthcut.run.search import search_model

    plan = search_model(recipe_of(context), output_dir, overwrite=overwrite, resume=resume)
    print_plan(plan)
    print(f"written to {output_dir / 'plan.json'}; next: depthcut apply {model} {output_dir / 'plan.json'} -o OUT")


def remove(
    context: typer.Context,
    model: Model,
    output_dir: Output,
    units: Annotated[str, typer.Option(help="Blocks (21-29) and sublayers (17.attn,18.attn) to remove.")],
    one_based: Annotated[bool, typer.Option("--one-based", help="Blocks are counted from 1 in --units.")] = False,
    evaluation: Evaluation = "stdlib",
    evaluation_samples: EvaluationSamples = 16,
    evaluation_length: EvaluationLength = 512,
    export: Forms = "",
    repair: Repair = "none",
    repair_text: RepairText = None,
    repair_samples: RepairSamples = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    save_dtype: SaveDtype = "auto",
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    speed: Speed = True,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Remove units that you name; measured, written and verified as prune does."""
    from depthcut.run.apply import apply_plan
    from depthcut.run.by_hand import plan_of_units

    require_token(push_to_hub)
    result = apply_plan(
        recipe_of(context),
        lambda source: plan_of_units(source, units, one_based=one_based),
        output_dir,
        overwrite=overwrite,
        command=command_line(),
    )
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)


def repair(
    context: typer.Context,
    directory: Directory,
    output_dir: Output,
    dense: Annotated[str | None, typer.Option(help="The dense model; by default the one that plan.json names.")] = None,
    repair: Repair = "refit",
    repair_text: RepairText = "stdlib",
    repair_samples: RepairSamples = 64,
    calibration_length: CalibrationLength = 512,
    evaluation: Evaluation = "stdlib",
    evaluation_samples: EvaluationSamples = 16,
    evaluation_length: EvaluationLength = 512,
    dtype: Dtype = "auto",
    save_dtype: SaveDtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    speed: Speed = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Repair a pruned model that was written before, towards its dense one."""
    from depthcut.run.apply import repair_written

    require_token(push_to_hub)
    made_from = Plan.from_file(directory / "plan.json").model
    recipe = recipe_of(context, model=dense or made_from.source, revision=None if dense else made_from.revision)
    result = repair_written(recipe, directory, output_dir, overwrite=overwrite, command=command_line())
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)
