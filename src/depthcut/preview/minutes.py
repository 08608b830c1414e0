"""What a run can take upon itself in so many minutes on this machine: `--minutes`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from depthcut.evaluation.speed import DECODE_TOKENS, ROUNDS, phases
from depthcut.model.device import chosen_device
from depthcut.model.flops import ModelWork, measure_work
from depthcut.model.units import empty_model
from depthcut.preview.device_profiles import measure_here
from depthcut.preview.dry_run import estimate_source
from depthcut.process.workspace import work_folder
from depthcut.run.effort import RUNGS
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, pose_problem, settle_storage
from depthcut.run.texts import settle_texts
from depthcut.run.write import RECIPE
from depthcut.types import InputError

BESIDE_SECONDS = 30.0
"""What no estimate of the stages counts: starting twice, loading, proving, writing; as measured on SmolLM2."""
SLOWER_ALONE = 20.0
"""How much longer than in a long text a token takes that is decoded alone, on a CPU: weights are read for it alone."""


def recipe_within(given: Mapping[str, Any], minutes: float, output: Path) -> tuple[Recipe, float | None]:
    """The recipe of most effort whose estimate is within some minutes; the least one where none is.

    Measures this machine for a second. An unfinished run at the output goes on with what was chosen for it.

    Args:
        given: options, which stay as they are.
        output: of the run.

    Returns:
        The recipe, and the estimated seconds; None for these where nothing was estimated.

    Raises:
        InputError: the minutes are none, or the run would be refused.
    """
    if not 0 < minutes < math.inf:
        raise InputError(f"{minutes:g} minutes are no time to work in; give --minutes 10 or another number above 0")
    if "effort" in given:
        raise InputError("--effort and --minutes both choose how much is done; give one of them")
    begun = work_folder(output) / RECIPE
    if begun.is_file():
        names = {name for rung in RUNGS for name in rung}
        chosen = {name: value for name, value in yaml.safe_load(begun.read_text()).items() if name in names}
        return Recipe.build(**chosen | dict(given)), None
    recipes = [Recipe.build(**rung | dict(given)) for rung in RUNGS]
    recipes[0].check()
    source = find_model(recipes[0])
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    device = chosen_device(recipes[0].device)
    here = measure_here(source.dtype, work.hidden_size, work.widest, device=device)
    best: tuple[Recipe, float] | None = None
    for recipe in recipes:
        if best is not None and not _allowed(recipe):
            break
        settled, of_recipe = settle_storage(recipe, source)
        settled = settle_texts(settled, of_recipe)
        problem = pose_problem(settled, of_recipe)
        expected = estimate_source(settled, of_recipe, problem, work)
        seconds = BESIDE_SECONDS + sum(expected.seconds(phase, here) for phase in expected.phases)
        if recipe.speed:
            seconds += _timing_flops(work, recipe.evaluation_length) / here.flops_per_second
        if best is not None and seconds > 60 * minutes:
            break
        best = (recipe, seconds)
    assert best is not None
    return best


def _timing_flops(work: ModelWork, length: int) -> float:
    """Work of timing two models, as `evaluation/speed.py` does; what slows decoding down counts as work."""
    contexts = set(phases(length).values())
    tokens = sum(context + SLOWER_ALONE * DECODE_TOKENS for context in contexts)
    return 2 * (ROUNDS + 1) * tokens * work.forward_flops(length) / length


def _allowed(recipe: Recipe) -> bool:
    """Whether what is given beside a rung goes with it: few repair samples, say, with a long training."""
    try:
        recipe.check(offline=True)
    except InputError:
        return False
    return True
