"""A plan that was found before or written by hand, applied to its model; and repairs of what is written already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from depthcut.model.load import ModelSource, resolve
from depthcut.model.units import sizes_from_config
from depthcut.process.workspace import check_output, workspace
from depthcut.results import Repair, read_list
from depthcut.run.heads import settle_objective
from depthcut.run.prune import Cut, carry_out
from depthcut.run.recipe import Recipe
from depthcut.run.result import Result
from depthcut.run.session import find_model, load, prepare, settle_storage
from depthcut.run.write import require_other_folder
from depthcut.surgery import check_removal
from depthcut.types import InputError, Plan


def apply_plan(
    recipe: Recipe,
    find_plan: Callable[[ModelSource], Plan],
    output: Path,
    *,
    num_steps: int | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Result:
    """Applies a plan, or its first steps, to the model it was made for.

    Args:
        recipe: names the model, the evaluation text, the repairs and the precision.
        find_plan: the plan for that model.
        num_steps: steps to apply; as marked in the plan where left out.

    Raises:
        InputError: the plan is of another model, or has fewer steps.
    """
    check_output(output, overwrite=overwrite, resume=False)
    recipe, source = settle_storage(recipe, find_model(recipe))
    recipe = settle_objective(recipe, source)
    plan = find_plan(source)
    if num_steps is not None:
        plan = plan.applying(num_steps)
    return _carry_out(recipe, source, plan, output, overwrite, command)


def repair_written(
    recipe: Recipe, directory: Path, output: Path, *, overwrite: bool = False, command: str = ""
) -> Result:
    """Repairs a model that was written before, from where its own repairs left it.

    Args:
        recipe: names the dense model, the repairs, the texts and the precision.
        directory: what `prune`, `apply` or `remove` wrote.

    Raises:
        InputError: there is nothing to repair with, or the directory was made from another model.
    """
    if not recipe.repairs:
        raise InputError("there is nothing to do: name a repair, such as --repair refit")
    if output.resolve() == directory.resolve():
        raise InputError(f"the output {output} is the model that is repaired; choose another directory")
    check_output(output, overwrite=overwrite, resume=False)
    source = replace(find_model(recipe), as_stored=False)
    recipe = settle_objective(recipe, source)
    plan = Plan.from_file(directory / "plan.json")
    plan.require_made_for(source.provenance)
    written = resolve(str(directory), dtype=source.provenance.dtype)
    file = directory / "repair.json"
    earlier = read_list(Repair, file) if file.is_file() else ()

    def cut() -> Cut:
        return Cut(written.load_model(recipe.device), tuple(earlier))

    return _carry_out(recipe, source, plan, output, overwrite, command, cut)


def _carry_out(
    recipe: Recipe,
    source: ModelSource,
    plan: Plan,
    output: Path,
    overwrite: bool,
    command: str,
    cut: Callable[[], Cut] | None = None,
) -> Result:
    check_removal(source.config, source.architecture, plan.removed)
    units = source.architecture.units(source.provenance.num_blocks)
    if not all(str(unit) in plan.unit_sizes for unit in units):
        sizes = sizes_from_config(source.config, source.architecture, source.dtype).units
        plan = plan.model_copy(update={"unit_sizes": {str(unit): size for unit, size in sizes.items()}})
    require_other_folder(output, source)
    prepared = prepare(recipe, source, ("repair", "evaluation"))
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        loaded = load(prepared)
        result = carry_out(loaded, plan, None, folder, command, {}, cut=None if cut is None else cut())
    return replace(result, output=output)
