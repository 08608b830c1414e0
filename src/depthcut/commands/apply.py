"""`depthcut apply`: a plan that was found before, on the model that it was made for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from depthcut.commands.options import Given, Output, Overwrite, PushToHub, takes
from depthcut.commands.terminal import command_line, print_measurements, print_result
from depthcut.commands.upload import require_token, upload
from depthcut.run.options import EVALUATION, MODEL, REPAIR
from depthcut.types import InputError, Plan


@takes(MODEL, EVALUATION, REPAIR, without=("compare",), defaults={"repair": "none"})
def apply(
    options: Given,
    context: typer.Context,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan for this model.")],
    output_dir: Output,
    steps: Annotated[int | None, typer.Option(help="Apply only the first steps of the path.")] = None,
    to: Annotated[
        str, typer.Option(help="hf, or gguf: prune a .gguf as it is, its tensors copied byte for byte, unmeasured.")
    ] = "hf",
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Apply a plan that was found before, or its first steps."""
    if to != "hf":
        _apply_to_gguf(context, to, options["model"], plan_file, output_dir, steps, overwrite)
        return
    from depthcut.run.apply import apply_plan
    from depthcut.run.by_hand import read_plan
    from depthcut.run.recipe import Recipe

    require_token(push_to_hub)
    result = apply_plan(
        Recipe.build(**options),
        partial(read_plan, plan_file),
        output_dir,
        num_steps=steps,
        overwrite=overwrite,
        command=command_line(),
    )
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)


def _apply_to_gguf(
    context: typer.Context, to: str, model: str, plan_file: Path, output: Path, steps: int | None, overwrite: bool
) -> None:
    from depthcut.registry import unknown_name
    from depthcut.run.apply_gguf import apply_to_gguf

    if to != "gguf":
        raise InputError(unknown_name("form to apply a plan to", to, ["gguf", "hf"]))
    for name in context.params.keys() - {"model", "plan_file", "output_dir", "steps", "to", "overwrite"}:
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT":
            option = name.replace("_", "-")
            raise InputError(f"with --to gguf tensors are copied and nothing is measured, so leave --{option} out")
    file, measurements = apply_to_gguf(model, Plan.from_file(plan_file), output, num_steps=steps, overwrite=overwrite)
    print_measurements(measurements)
    print(f"\nkept tensors equal the source's byte for byte\nwritten to {file}")
