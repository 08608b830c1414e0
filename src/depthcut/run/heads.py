"""What a model's head means for a run: the objective that decides, and what cannot be asked of it."""

from __future__ import annotations

from depthcut.ablation.objectives import OBJECTIVES, OF_HEAD, check_objective
from depthcut.calibration import parse_source
from depthcut.export import EXPORTS, check_form
from depthcut.methods.budget import Budget
from depthcut.methods.problem import SEARCHES
from depthcut.model.heads import GIVES, head_of
from depthcut.model.load import ModelSource
from depthcut.registry import split_settings
from depthcut.run.options import AUTO
from depthcut.run.recipe import Recipe
from depthcut.types import InputError


def settle_objective(recipe: Recipe, source: ModelSource) -> Recipe:
    """The recipe with the objective of the model's head, where it names none.

    Raises:
        InputError: something is asked of the model that it does not give.
    """
    head = head_of(source.config)
    if head != "tokens":
        _check_uses(recipe, source)
    for form in recipe.export:
        check_form(split_settings(form)[0], EXPORTS.parse(form)[1], source.config)
    if recipe.max_increase:
        check_objective(Budget.parse(None, None, recipe.max_increase).objective, head)
    search = recipe.build_search()
    if search.needs != "objective" or search.objective is None:
        return recipe
    known = SEARCHES.find(split_settings(recipe.method)[0]).settings()
    if head != "tokens" and "objective" in known and "objective" not in recipe.method_settings:
        return recipe.model_copy(update={"objective": OF_HEAD[head]})
    if search.objective in OBJECTIVES or split_settings(search.objective)[0] in OBJECTIVES:
        check_objective(search.objective, head)
    return recipe


def _check_uses(recipe: Recipe, source: ModelSource) -> None:
    what = f"this model {GIVES[head_of(source.config)]}"
    if any(text != AUTO and parse_source(text).has_self for text in (recipe.calibration, recipe.repair_source)):
        raise InputError(f"{what}, and so writes no text; name a SOURCE other than self")
    if recipe.tasks or recipe.generation:
        raise InputError(f"{what}, and tasks and generation ask for the next token; leave them out")


def require_tokens(source: ModelSource, what: str) -> None:
    """Raises InputError where a model does not predict tokens.

    Args:
        what: that cannot do without, for the error.
    """
    head = head_of(source.config)
    if head != "tokens":
        raise InputError(f"{what} about models that predict tokens, and {source.provenance.source} {GIVES[head]}")
