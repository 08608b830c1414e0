"""`depthcut prune` and `run`: from options or a recipe to the run, its estimate, or a shard of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def _start(
    recipe: Any,
    output_dir: Output,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Resume = False,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    device_profile: DeviceProfileOption = None,
    devices: Devices = None,
) -> None:
    """Previews a run, evaluates a shard of it, or runs it.

    Args:
        recipe: a `Recipe`, which is imported only once a command runs.
    """
    if dry_run or device_profile is not None or devices is not None:
        require_alone("--dry-run")
        from depthcut.preview.device_profiles import HERE
        from depthcut.preview.dry_run import preview
        from depthcut.process.workspace import check_output

        if not dry_run:
            raise InputError("--device-profile and --devices belong to --dry-run; add it, or leave them out")
        check_output(output_dir, overwrite=overwrite, resume=resume)
        num_devices = 1 if devices is None else devices
        print_preview(preview(recipe, device_profile=device_profile or HERE, num_devices=num_devices), recipe)
    elif shard is not None:
        require_alone("a shard, which does not communicate,")
        from depthcut.process.ranks import Shard
        from depthcut.run.shards import evaluate_share

        if overwrite or push_to_hub:
            raise InputError("a shard writes no model; leave --overwrite and --push-to-hub out with --shard")
        print(evaluate_share(recipe, output_dir, Shard.parse(shard)))
    else:
        _run(recipe, output_dir, overwrite=overwrite, resume=resume, push_to_hub=push_to_hub)


@takes(*PANELS, hands_to=_start)
def prune(context: typer.Context, options: Given, minutes: Minutes = None, **given: Any) -> None:
    """Find the units that the output depends on least, remove them, repair, measure, and write a verified model.

    SOURCE is a built-in text (stdlib, self, wikitext, c4), a data set of the hub or a file, with settings after commas:
    wikitext, allenai/c4,config=en or notes.jsonl,column=body. Several are joined with +.
    """
    from depthcut.run.recipe import Recipe

    # Options that are not given are left to the effort.
    sources = {name: context.get_parameter_source(name) for name in options}
    options = {name: options[name] for name, source in sources.items() if source is None or source.name != "DEFAULT"}
    _start(Recipe.build(**options) if minutes is None else _within(options, minutes, given["output_dir"]), **given)


@takes(hands_to=_start)
def run(
    recipe: RecipeName,
    small: Annotated[bool, typer.Option("--small", help="The recipe's variant for a CPU: a minute or two.")] = False,
    **given: Any,
) -> None:
    """Run prune or a study with the options in a recipe."""
    from depthcut.model.checkpoint import check_model
    from depthcut.recipes import find_recipe, load_recipe, recipe_options

    path = find_recipe(recipe)
    options = recipe_options(path, small=small)
    if isinstance(model := options.get("model"), str):
        check_model(model, str(options["revision"]) if options.get("revision") else None)

    from depthcut.studies.recipe import StudyRecipe

    loaded = load_recipe(path, small=small)
    if not isinstance(loaded, StudyRecipe):
        _start(loaded, **given)
        return
    output, overwrite, resume = given["output_dir"], given["overwrite"], given["resume"]
    if given["dry_run"] or given["push_to_hub"]:
        raise InputError("a study writes no model and has no plan to print; leave --dry-run and --push-to-hub out")
    require_alone("a study")
    loaded.check()
    print_study(loaded.run(output, overwrite=overwrite, resume=resume, command=command_line()), output)


def _within(options: Given, minutes: float, output: Path) -> Recipe:
    """The recipe with the most effort that fits into some minutes; prints what was chosen."""
    from depthcut.preview.minutes import recipe_within
    from depthcut.run.effort import RUNGS

    recipe, seconds = recipe_within(options, minutes, output)
    chosen = [name for name in dict.fromkeys(name for rung in RUNGS for name in rung) if name not in options]
    words = [f"{name.replace('_', '-')} {getattr(recipe, name)}" for name in chosen if getattr(recipe, name)]
    taking = "" if seconds is None else f", about {duration_text(seconds)}"
    print(f"for {minutes:g} minutes: {', '.join(words)}{taking}", file=sys.stderr)
    return recipe


def _run(recipe: Recipe, output: Path, *, overwrite: bool, resume: bool, push_to_hub: str | None) -> None:
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
