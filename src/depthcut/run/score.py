"""The static scores of a model without a search: the work of `depthcut score`."""

from __future__ import annotations

from pathlib import Path

from depthcut.process.workspace import check_output, workspace
from depthcut.run.heads import settle_objective
from depthcut.run.plan import recipe_of_scores, score_units
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, prepare
from depthcut.run.texts import settle_texts
from depthcut.run.write import require_other_folder
from depthcut.types import ScoreTable


def score_model(recipe: Recipe, output: Path | None, *, overwrite: bool = False) -> ScoreTable:
    """Every static score of every unit, and the recipe's metric.

    Args:
        output: directory for them, as `scores.json`; nothing is written where left out.

    Raises:
        InputError: the metric is unknown, or cannot be computed of this model.
    """
    recipe = recipe_of_scores(recipe)
    if output is not None:
        check_output(output, overwrite=overwrite, resume=False)
    source = find_model(recipe)
    recipe = settle_texts(settle_objective(recipe, source), source, scores_alone=True)
    if output is not None:
        require_other_folder(output, source)
    prepared = prepare(recipe, source, ("calibration",))
    if output is None:
        return score_units(load(prepared), None)[0]
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        return score_units(load(prepared), folder)[0]
