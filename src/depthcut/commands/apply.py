"""`depthcut apply`: a plan that was found before, on the model that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.commands.options import Given, Output, Overwrite, PushToHub, takes
from depthcut.commands.terminal import command_line, print_measurements, print_result
from depthcut.commands.upload import require_token, upload
from depthcut.run.options import EVALUATION, MODEL, OF_APPLY, REPAIR
from depthcut.types import InputError


@takes(MODEL, EVALUATION, REPAIR, without=("compare",), defaults=OF_APPLY)
def apply(
    options: Given,
    context: typer.Context,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan for this model.")],
    output_dir: Output,
    steps: Annotated[int | None, typer.Option(help="Apply only that many first steps of the plan.")] = None,
    to: Annotated[
        str, typer.Option(help="hf, or gguf: prune a .gguf file by copying its tensors byte for byte, unmeasured.")
    ] = "hf",
    imatrix: Annotated[
        Path | None, typer.Option(help="With --to gguf: an importance matrix, to prune together with the model.")
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Apply an existing plan, or its first steps."""
    if to != "hf":
        _apply_to_gguf(context, to, options["model"], plan_file, output_dir, steps, imatrix, overwrite)
        return
    if imatrix is not None:
        raise InputError("an importance matrix is llama.cpp's; give --to gguf, or leave --imatrix out")
    from depthcut.run.apply import apply_plan
    from depthcut.run.plan_file import read_plan
    from depthcut.run.recipe import Recipe

    require_token(push_to_hub)
    result = apply_plan(
        Recipe.build(**options),
        lambda source: read_plan(plan_file, source.provenance, len(source.architecture.branches)),
        output_dir,
        num_steps=steps,
        overwrite=overwrite,
        command=command_line(),
    )
    print_result(result, output_dir)
    upload(output_dir, push_to_hub)


def _apply_to_gguf(
    context: typer.Context,
    to: str,
    model: str,
    plan_file: Path,
    output: Path,
    steps: int | None,
    imatrix: Path | None,
    overwrite: bool,
) -> None:
    from depthcut.registry import unknown_name
    from depthcut.run.apply_gguf import apply_to_gguf

    if to != "gguf":
        raise InputError(unknown_name("format to apply a plan to", to, ["gguf", "hf"]))
    for name in context.params.keys() - {"model", "plan_file", "output_dir", "steps", "to", "imatrix", "overwrite"}:
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT":
            option = name.replace("_", "-")
            raise InputError(f"with --to gguf tensors are copied and nothing is measured, so leave --{option} out")
    file, measurements = apply_to_gguf(model, plan_file, output, num_steps=steps, imatrix=imatrix, overwrite=overwrite)
    print_measurements(measurements)
    print(f"\nkept tensors equal the source's byte for byte\nwritten to {file}")
