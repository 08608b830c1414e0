"""Scores and a plan without a removal: the work of `depthcut search`."""

from __future__ import annotations

from pathlib import Path

from depthcut.process.ranks import join, was_restarted
from depthcut.process.workspace import check_output, workspace
from depthcut.run.heads import settle_objective
from depthcut.run.plan import find_plan
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, pose_problem, prepare
from depthcut.run.texts import settle_texts
from depthcut.run.write import require_other_folder, require_same_recipe
from depthcut.types import Plan


def search_model(recipe: Recipe, output: Path, *, overwrite: bool = False, resume: bool = False) -> Plan:
    """Finds what a run would remove, and writes plan, scores and journal; no model is written.

    Raises:
        InputError: something in the recipe cannot be done; found before weights load where that is possible.
    """
    ranks = join()
    resume = resume or was_restarted()
    with ranks.one_voice():
        recipe.check()
        if ranks.is_first:
            check_output(output, overwrite=overwrite, resume=resume)
        source = find_model(recipe)
        recipe = settle_objective(recipe, source)
        recipe = settle_texts(recipe, source)
        problem = pose_problem(recipe, source)
        require_other_folder(output, source)
        prepared = prepare(recipe, source, ("calibration",))
        with workspace(output, overwrite=overwrite, resume=resume, ranks=ranks) as folder:
            if ranks.is_first:
                require_same_recipe(recipe, folder)
            plan = find_plan(load(prepared, ranks, folder), problem, folder, ranks)[1]
            if ranks.is_first:
                plan.write(folder / "plan.json")
    return plan
