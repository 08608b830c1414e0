"""Which units methods remove for several amounts: one path that is cut, where a method's plans are nested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from depthcut.ablation.objectives import OBJECTIVES
from depthcut.importance import METRICS
from depthcut.methods.problem import Problem
from depthcut.model.load import ModelSource
from depthcut.run.plan import find_plan, score_units
from depthcut.run.recipe import Recipe
from depthcut.run.session import Loaded, pose_problem
from depthcut.types import InputError, Plan

PATHS = "paths"
"""Folder of the plans that a study has found, one folder a method."""


@dataclass(frozen=True)
class PosedMethod:
    """One method with what it is asked for, checked before weights load.

    Attributes:
        recipes: by name of the amount, the recipe that asks for it.
        problems: the same amounts as searches are given them.
    """

    name: str
    recipes: dict[str, Recipe]
    problems: dict[str, Problem]


def check_methods(methods: Sequence[str]) -> None:
    """Raises InputError where none is named, or one twice."""
    if not methods:
        raise InputError("no method was named; give some with --methods, for example greedy,shortgpt,uidl")
    if len(set(methods)) != len(methods):
        raise InputError(f"a method is named twice among {', '.join(methods)}; name each once")


def pose_method(recipe: Recipe, source: ModelSource, name: str, budgets: dict[str, dict[str, str]]) -> PosedMethod:
    """A method with several amounts.

    Args:
        budgets: by name of the amount, the recipe's `remove` or `budget`.

    Raises:
        InputError: the method is unknown, or cannot remove so much or such units.
    """
    recipes = ask_method(recipe, name, budgets)
    return PosedMethod(name, recipes, {amount: pose_problem(each, source) for amount, each in recipes.items()})


def ask_method(
    recipe: Recipe, name: str, budgets: dict[str, dict[str, str]], *, offline: bool = False
) -> dict[str, Recipe]:
    """By name of the amount, the recipe that asks a method for it; a metric's or an objective's name stands for
    `one-shot` by it.

    Raises:
        InputError: the method is unknown, or one of its options is wrong.
    """
    chosen = {"method": name}
    if name in METRICS or name in OBJECTIVES:
        chosen = {"method": "one-shot", "metric": name}
    recipes = {}
    for amount, budget in budgets.items():
        recipes[amount] = Recipe.build(**recipe.model_dump() | chosen | budget)
        recipes[amount].check(offline=offline)
    return recipes


def path_of(loaded: Loaded, method: PosedMethod, folder: Path) -> dict[int, Plan]:
    """Plans that remove one unit, two, and so on to the method's only amount, by their number of units.

    A path is cut where it goes unit by unit; else (`uidl`, `window`) the method is asked for each number anew.
    Exchanges are left out: they make the last set of a path better and those before it worse.
    """
    (amount, recipe), *_ = method.recipes.items()
    if "swap" not in recipe.method_settings and "swap" in recipe.build_search().__dict__:
        recipe = recipe.model_copy(update={"swap": False})
    problem = method.problems[amount]
    longest = _plan(loaded, recipe, problem, folder / PATHS / method.name)
    if all(problem.count(step.remove) == 1 for step in longest.steps):
        return {count: longest.applying(count) for count in range(1, problem.wanted + 1)}
    plans = {problem.wanted: longest}
    for count in range(1, problem.wanted):
        asked = recipe.model_copy(update={"remove": str(count)})
        smaller = replace(problem, budget=asked.parsed_budget)
        plans[count] = _plan(loaded, asked, smaller, folder / PATHS / method.name)
    return dict(sorted(plans.items()))


def plans_of(loaded: Loaded, method: PosedMethod, folder: Path) -> dict[str, Plan]:
    """The plan for each of the method's amounts, as `prune` would find it."""
    return {
        amount: _plan(loaded, recipe, method.problems[amount], folder / PATHS / method.name)
        for amount, recipe in method.recipes.items()
    }


def _plan(loaded: Loaded, recipe: Recipe, problem: Problem, folder: Path) -> Plan:
    """A plan, found once: what an earlier process wrote is taken as it is."""
    file = folder / f"plan-{str(problem.budget).split()[-1].replace('=', '-').replace('%', '-percent')}.json"
    if file.is_file():
        return Plan.from_file(file)
    folder.mkdir(parents=True, exist_ok=True)
    # All methods are given the same scores, from one pass, and a metric beside it once for all amounts.
    asked = replace(loaded, recipe=recipe)
    table, _ = score_units(asked, folder.parents[1])
    table.write(folder / "scores.json")
    _, plan = find_plan(asked, problem, folder)
    plan.write(file)
    return plan
