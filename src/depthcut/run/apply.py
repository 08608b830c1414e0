"""A plan that was found before, applied to the model it was made for: the work of `depthcut apply`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from depthcut.model.units import sizes_from_config
from depthcut.process.workspace import check_output, workspace
from depthcut.run.prune import carry_out
from depthcut.run.recipe import Recipe
from depthcut.run.result import Result
from depthcut.run.session import find_model, load, prepare
from depthcut.run.write import require_other_folder
from depthcut.surgery import check_removal
from depthcut.types import Plan


def apply_plan(
    recipe: Recipe,
    plan: Plan,
    output: Path,
    *,
    num_steps: int | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Result:
    """Applies a plan that was found before, or its first steps, to the model it was made for.

    Args:
        recipe: names the model, the evaluation text and the precision.
        num_steps: steps to apply; as marked in the plan where left out.

    Raises:
        InputError: the plan is of another model, or has fewer steps.
    """
    check_output(output, overwrite=overwrite, resume=False)
    source = find_model(recipe)
    plan.require_made_for(source.provenance)
    if num_steps is not None:
        plan = plan.applying(num_steps)
    check_removal(source.config, source.architecture, plan.removed)
    units = source.architecture.units(source.provenance.num_blocks)
    if not all(str(unit) in plan.unit_sizes for unit in units):
        sizes = sizes_from_config(source.config, source.architecture, source.dtype).units
        plan = plan.model_copy(update={"unit_sizes": {str(unit): size for unit, size in sizes.items()}})
    require_other_folder(output, source)
    prepared = prepare(recipe, source, ("repair", "evaluation"))
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        result = carry_out(load(prepared), plan, None, folder, command, {})
    return replace(result, output=output)
