"""The commands as Python functions: the same names, options and defaults as on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from depthcut.run import on_model
from depthcut.run.apply import apply_plan
from depthcut.run.options import OF_APPLY
from depthcut.run.plan_file import read_plan
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.run.result import Result
from depthcut.run.score import score_model
from depthcut.types import ScoreTable


def prune(
    model: str, *, output: str | Path | None = None, overwrite: bool = False, resume: bool = False, **options: Any
) -> Result:
    """Prunes a model: `depthcut prune`.

    Args:
        model: hub id, directory, `.gguf` file or alias.
        output: directory to write; nothing is written where left out.
        overwrite: replace an earlier result there.
        resume: go on with an interrupted run there, begun with the same options.
        options: the fields of `Recipe`, for example `remove="25%"`.

    Returns:
        The plan, the measurements, what repairs did, and the pruned model.

    Raises:
        InputError: an option is unknown, or what it asks for cannot be done; where that is possible, before weights
            load. Nothing has been written.
        VerificationError: the written model, read in a fresh process, is not the one in memory; no output appears.
    """
    recipe = Recipe.build(model=model, **options)
    return prune_model(
        recipe, Path(output) if output else None, overwrite=overwrite, resume=resume, command=_command("prune", recipe)
    )


def score(
    model: str | PreTrainedModel,
    *of_loaded: Any,
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ScoreTable:
    """Scores every unit of a model by every static metric: `depthcut score`. Costs one forward pass of the decoder.

    Args:
        model: hub id, directory, `.gguf` file or alias; or a loaded model.
        of_loaded: for a loaded model, the arguments of `run.on_model.score`.
        output: directory to write `scores.json` into; nothing is written where left out.
        overwrite: replace an earlier result there.
        options: the fields of `Recipe` that name the model's precision and the calibration text.

    Returns:
        The scores of blocks and of sublayers, larger = more damage when removed, and UIDL's angular distances.

    Raises:
        InputError: an option is unknown, or an activation is not finite.
    """
    if not isinstance(model, str):
        return on_model.score(model, *of_loaded, **options)
    recipe = Recipe.build(model=model, **options)
    return score_model(recipe, Path(output) if output else None, overwrite=overwrite)


def apply(
    model: str,
    plan: str | Path,
    *,
    output: str | Path,
    steps: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Result:
    """Applies a plan that was found before: `depthcut apply`. Nothing is repaired unless `repair` says so.

    Args:
        model: the model that the plan was made for, under any name.
        plan: file that holds it; one written by hand needs nothing but `steps`.
        output: directory to write.
        steps: how many steps of the path to apply; as marked in the plan where left out.
        overwrite: replace an earlier result there.
        options: the fields of `Recipe` that name the evaluation text, the repairs and the precision.

    Returns:
        The plan as applied, the measurements, what repairs did, and the pruned model.

    Raises:
        InputError: the plan is of another model, or has fewer steps.
        VerificationError: the written model, read in a fresh process, is not the one in memory; no output appears.
    """
    recipe = Recipe.build(model=model, **(OF_APPLY | options))
    return apply_plan(
        recipe,
        lambda source: read_plan(Path(plan), source.provenance, len(source.architecture.branches)),
        Path(output),
        num_steps=steps,
        overwrite=overwrite,
        command=_command("apply", recipe, str(plan)),
    )


def _command(verb: str, recipe: Recipe, *operands: str) -> str:
    """The command line that does the same; the output's name is left to the reader."""
    given = recipe.model_dump(mode="json", exclude_defaults=True)
    words = ["depthcut", verb, str(given.pop("model")), *operands, "-o", "OUT"]
    for name, value in given.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)
