"""The `eval` command: written models measured beside their dense one, by text, by task and by what they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthcut.commands.options import Given, takes
from depthcut.commands.terminal import print_measurements
from depthcut.results import Measurement, read_list, write_list
from depthcut.run.options import TASKS
from depthcut.types import InputError, Plan

if TYPE_CHECKING:
    from depthcut.evaluation.suite import Suite
    from depthcut.run.evaluate import Measured

PLAN = "plan.json"
RESULTS = "results.json"
GENERATION = "generation.json"


@takes("evaluation_samples", "evaluation_length", TASKS, "dtype", "device", "trust_remote_code", "speed", "seed")
def evaluate(
    options: Given,
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories of pruned models.")],
    dense: Annotated[str | None, typer.Option(help="The dense model; by default the one in DIR/plan.json.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "--evaluation", help="SOURCE for perplexity and KL; may be given several times."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Task requests run together: auto or a number.")] = "auto",
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run code written by the model.")
    ] = False,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder that caches task results; ~/.cache/depthcut/evaluation by default.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="Where to measure speed: transformers, llama.cpp or vllm; in the last two only speed."),
    ] = "transformers",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the measurements here, not to DIR/results.json."),
    ] = None,
) -> None:
    """Measure written models beside their dense model: perplexity, KL, sizes, speed, tasks, and generated text.

    A directory that prune or apply wrote gets the measurements in its results.json, and the texts of --generation in
    its generation.json. A task that was evaluated on the same model before is not evaluated again.
    """
    if output is not None and output.exists():
        raise InputError(f"{output} exists; name another file")
    if batch_size != "auto" and not (batch_size.isdigit() and int(batch_size)):
        raise InputError(f"batch size {batch_size!r} is no number of requests; write auto or 1 and more")
    from depthcut.evaluation.harness import check_cache, default_cache
    from depthcut.evaluation.questions import Questions
    from depthcut.run.evaluate import Measured, engine_speed, evaluate_models
    from depthcut.run.recipe import Recipe

    tasks, generation = options.pop("tasks"), options.pop("generation")
    chosen = {name: options.pop(name) for name in ("num_fewshot", "limit", "include_path")}
    recipe = Recipe.build(model=dense or _dense_of(directories), **options)
    found: dict[str, Measured] = {}
    told: list[str] = []
    if engine != "transformers":
        if tasks or generation or text:
            raise InputError(f"in {engine} speed alone is measured; leave --tasks, --text and --generation out")
        for directory in directories:
            found[directory] = Measured(tuple(engine_speed(recipe, directory, engine)))
    else:
        cache = cache_dir or default_cache()
        if tasks:
            check_cache(cache)
        questions = Questions(
            suite=_suite(tasks, chosen, confirm_run_unsafe_code),
            generation=generation,
            batch_size=batch_size,
            cache=cache,
            seed=recipe.seed,
        )
        for directory, each in evaluate_models(recipe, directories, questions, text or ()):
            found[directory] = each
            if output is None:
                told.append(_add_to(Path(directory), each))
    joined = _side_by_side({directory: each.measurements for directory, each in found.items()})
    print_measurements(joined)
    if output is not None:
        write_list(joined, output)
        told.append(f"written to {output}")
    print("\n".join(told))


def _dense_of(directories: Sequence[str]) -> str:
    """The one model that all of them were made from."""
    models = {directory: Plan.from_file(Path(directory) / PLAN).model for directory in directories}
    first = next(iter(models.values()))
    for directory, model in models.items():
        if model.digest != first.digest:
            raise InputError(
                f"{directory} was made from {model.source} and {directories[0]} from {first.source}; measure them "
                "apart, or name one dense model with --dense"
            )
    return first.source


def _suite(tasks: Sequence[str], chosen: Mapping[str, Any], unsafe_code: bool) -> Suite | None:
    if not tasks:
        if any(value is not None for value in chosen.values()):
            raise InputError("--num-fewshot, --limit and --include-path are about tasks; name some with --tasks")
        return None
    from depthcut.evaluation.suite import load_suite

    return load_suite(tasks, **chosen, unsafe_code=unsafe_code)


def _side_by_side(found: Mapping[str, Sequence[Measurement]]) -> list[Measurement]:
    """All measurements in one list: of several pruned models each by its directory's name, the dense one's once."""
    if len(found) == 1:
        return list(*found.values())
    short = {directory: Path(directory).name for directory in found}
    distinct = len({*short.values(), "dense"}) == len(short) + 1
    joined: dict[tuple[str, str, str], Measurement] = {}
    for directory, measurements in found.items():
        for measurement in measurements:
            name = short[directory] if distinct else directory
            model = name if measurement.model == "pruned" else measurement.model
            joined.setdefault(
                (measurement.name, measurement.data, model), measurement.model_copy(update={"model": model})
            )
    return list(joined.values())


def _add_to(directory: Path, found: Measured) -> str:
    """Adds measurements to a directory that depthcut wrote, replacing earlier ones; returns a message."""
    if not (directory / PLAN).is_file():
        return f"{directory} was not written by depthcut, so nothing is written there; --output names a file"
    file = directory / RESULTS
    earlier = read_list(Measurement, file) if file.is_file() else []
    rows = {(row.name, row.data, row.model): row for row in (*earlier, *found.measurements)}
    partial = file.with_suffix(".partial")
    write_list(list(rows.values()), partial)
    partial.replace(file)
    if found.generation:
        write_list(found.generation, directory / GENERATION)
    return f"added to {file}; depthcut report {directory} shows it"
