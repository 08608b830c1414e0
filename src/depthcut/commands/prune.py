"""`depthcut prune` and `run`: from options or a recipe to the run, its estimate, or a shard of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthcut.commands.options import (
    DeviceProfileOption,
    Devices,
    DryRun,
    Given,
    Minutes,
    Output,
    Overwrite,
    PushToHub,
    Resume,
    ShardOption,
    takes,
)
from depthcut.commands.terminal import (
    command_line,
    duration_text,
    print_outlook,
    print_preview,
    print_result,
    print_study,
    require_alone,
)
from depthcut.commands.upload import require_token, upload
from depthcut.registry import split_settings
from depthcut.run.options import PANELS
from depthcut.types import InputError

if TYPE_CHECKING:
    from depthcut.run.recipe import Recipe

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe by name (see depthcut ls), or options as YAML in a file.")
]


@takes(*PANELS)
def prune(
    context: typer.Context,
    options: Given,
    output_dir: Output,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Resume = False,
    shard: ShardOption = None,
    minutes: Minutes = None,
    dry_run: DryRun = False,
    device_profile: DeviceProfileOption = None,
    devices: Devices = None,
) -> None:
    """Find what can go, remove it, measure what is left, and write a model that reloads.

    SOURCE is a built-in text (stdlib, self, wikitext, c4), a hub data set or a file, with settings after commas:
    wikitext, allenai/c4,config=en or notes.jsonl,column=body. Several are joined with +.
    """
    from depthcut.run.recipe import Recipe

    # What is not given is for the effort to choose.
    sources = {name: context.get_parameter_source(name) for name in options}
    options = {name: options[name] for name, source in sources.items() if source is None or source.name != "DEFAULT"}
    recipe = Recipe.build(**options) if minutes is None else _within(options, minutes, output_dir)
    if dry_run or device_profile is not None or devices is not None:
        _preview(recipe, output_dir, overwrite, resume, dry_run, device_profile, devices)
        return
    _run(recipe, output_dir, overwrite=overwrite, resume=resume, push_to_hub=push_to_hub, shard=shard)


def run(
    recipe: RecipeName,
    output_dir: Output,
    small: Annotated[bool, typer.Option("--small", help="The recipe's variant for a CPU: a minute or two.")] = False,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Resume = False,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    device_profile: DeviceProfileOption = None,
    devices: Devices = None,
) -> None:
    """Run prune or a study from a recipe."""
    from depthcut.model.checkpoint import check_model
    from depthcut.recipes import find_recipe, load_recipe, recipe_options

    path = find_recipe(recipe)
    options = recipe_options(path, small=small)
    if isinstance(model := options.get("model"), str):
        check_model(model, str(options["revision"]) if options.get("revision") else None)

    from depthcut.studies.recipe import StudyRecipe

    loaded = load_recipe(path, small=small)
    if isinstance(loaded, StudyRecipe):
        if dry_run or push_to_hub:
            raise InputError("a study writes no model and has no plan to print; leave --dry-run and --push-to-hub out")
        require_alone("a study")
        loaded.check()
        print_study(loaded.run(output_dir, overwrite=overwrite, resume=resume, command=command_line()), output_dir)
        return
    if dry_run or device_profile is not None or devices is not None:
        _preview(loaded, output_dir, overwrite, resume, dry_run, device_profile, devices)
        return
    _run(loaded, output_dir, overwrite=overwrite, resume=resume, push_to_hub=push_to_hub, shard=shard)


def _within(options: Given, minutes: float, output: Path) -> Recipe:
    """What can be done in some minutes; says what was chosen."""
    from depthcut.preview.minutes import recipe_within
    from depthcut.run.effort import RUNGS

    recipe, seconds = recipe_within(options, minutes, output)
    chosen = [name for name in dict.fromkeys(name for rung in RUNGS for name in rung) if name not in options]
    words = [f"{name.replace('_', '-')} {getattr(recipe, name)}" for name in chosen if getattr(recipe, name)]
    taking = "" if seconds is None else f", about {duration_text(seconds)}"
    print(f"for {minutes:g} minutes: {', '.join(words)}{taking}", file=sys.stderr)
    return recipe


def _preview(
    recipe: Recipe,
    output: Path,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    device_profile: str | None,
    devices: int | None,
) -> None:
    require_alone("--dry-run")
    from depthcut.preview.device_profiles import HERE
    from depthcut.preview.dry_run import preview
    from depthcut.process.workspace import check_output

    if not dry_run:
        raise InputError("--device-profile and --devices are about what --dry-run estimates; add it, or leave them out")
    check_output(output, overwrite=overwrite, resume=resume)
    num_devices = 1 if devices is None else devices
    print_preview(preview(recipe, device_profile=device_profile or HERE, num_devices=num_devices), recipe)


def _run(
    recipe: Recipe, output: Path, *, overwrite: bool, resume: bool, push_to_hub: str | None, shard: str | None
) -> None:
    if shard is not None:
        _evaluate_share(recipe, output, shard, overwrite=overwrite, push_to_hub=push_to_hub)
        return
    from depthcut.preview.outlook import outlook
    from depthcut.run.prune import prune_model

    require_token(push_to_hub)
    result = prune_model(
        recipe,
        output,
        overwrite=overwrite,
        resume=resume,
        command=command_line(),
        foretell=lambda recipe, source, problem: print_outlook(outlook(recipe, source, problem)),
    )
    if result.output is None:
        return
    print_result(result, output)
    for form in (split_settings(text)[0] for text in recipe.export):
        if form not in dict(result.not_written):
            print(f"{form} written to {output / form}, verified")
    for form, reason in result.not_written:
        print(f"depthcut: {form} was not written: {reason}", file=sys.stderr)
    upload(output, push_to_hub)
    if result.not_written:
        raise typer.Exit(1)


def _evaluate_share(recipe: Recipe, output: Path, shard: str, *, overwrite: bool, push_to_hub: str | None) -> None:
    from depthcut.process.ranks import Shard
    from depthcut.run.shards import evaluate_share

    require_alone("a shard, which meets no other,")
    if overwrite or push_to_hub:
        raise InputError("a shard writes no model; leave --overwrite and --push-to-hub out with --shard")
    print(evaluate_share(recipe, output, Shard.parse(shard)))
