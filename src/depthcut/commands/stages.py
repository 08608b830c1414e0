"""`depthcut search`, `remove` and `repair`: stages of a run by themselves, on a model or on what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.commands.options import Given, Output, Overwrite, PushToHub, Resume, takes
from depthcut.commands.terminal import command_line, print_plan, print_result
from depthcut.commands.upload import require_token, upload
from depthcut.run.options import AUTO, CALIBRATION, EVALUATION, MODEL, OF_APPLY, REMOVAL, REPAIR, RUN
from depthcut.types import Plan

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that prune, apply or remove wrote.")]


@takes(MODEL, REMOVAL, CALIBRATION, RUN, without=("save_dtype", "effort"))
def search(options: Given, output_dir: Output, overwrite: Overwrite = False, resume: Resume = False) -> None:
    """Find the units to remove, and write plan.json for apply; no model is written."""
    from depthcut.run.recipe import Recipe
    from depthcut.run.search import search_model

    plan = search_model(Recipe.build(**options), output_dir, overwrite=overwrite, resume=resume)
    print_plan(plan)
    file = output_dir / "plan.json"
    print(f"written to {file}; next: depthcut apply {options['model']} {file} -o OUT")


@takes(MODEL, EVALUATION, REPAIR, "export", "memory_budget", without=("compare",), defaults=OF_APPLY)
def remove(
    options: Given,
    output_dir: Output,
    units: Annotated[str, typer.Option(help="Blocks (21-29) and sublayers (17.attn,18.attn) to remove.")],
    one_based: Annotated[bool, typer.Option("--one-based", help="Count the blocks in --units from 1.")] = False,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Remove units that you name; measure, write and verify as prune does."""
    from depthcut.run.apply import apply_plan
    from depthcut.run.by_hand import plan_of_units
    from depthcut.run.recipe import Recipe

    require_token(push_to_hub)
    result = apply_plan(
        Recipe.build(**options),
        lambda source: plan_of_units(source, units, one_based=one_based),
        output_dir,
        overwrite=overwrite,
        command=command_line(),
    )
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)


@takes(
    REPAIR,
    EVALUATION,
    RUN,
    "calibration_length",
    "dtype",
    "save_dtype",
    "device",
    without=("compare", "effort"),
    defaults={"repair": "refit", "repair_text": AUTO, "repair_samples": 64},
)
def repair(
    options: Given,
    directory: Directory,
    output_dir: Output,
    dense: Annotated[str | None, typer.Option(help="The dense model; by default the one that plan.json names.")] = None,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Repair or heal a written pruned model, towards its dense model."""
    from depthcut.run.apply import repair_written
    from depthcut.run.recipe import Recipe

    require_token(push_to_hub)
    made_from = Plan.from_file(directory / "plan.json").model
    source = {"model": dense or made_from.source, "revision": None if dense else made_from.revision}
    recipe = Recipe.build(**options, **source)
    result = repair_written(recipe, directory, output_dir, overwrite=overwrite, command=command_line())
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)
