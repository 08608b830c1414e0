"""`depthcut ls`, `validate` and `schema`: what there is, and what files may say."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from depthcut.registry import say
from depthcut.results import GenerationSample, Measurement, Repair
from depthcut.types import InputError, Plan, ScoreTable


def list_names(
    name: Annotated[
        str | None,
        typer.Argument(help="A listed name, to show its settings; without it, everything is listed."),
    ] = None,
) -> None:
    """List methods, metrics, objectives, repairs, formats, texts, recipes and models, or the settings of one name."""
    from rich.console import Console

    if name is not None:
        _list_settings(name)
        return
    from rich.table import Table

    from depthcut.ablation.objectives import OBJECTIVES
    from depthcut.calibration import BUILT_IN
    from depthcut.export import EXPORTS
    from depthcut.importance import METRICS
    from depthcut.methods.problem import SEARCHES
    from depthcut.model.architectures import FAMILIES
    from depthcut.model.files import PACKAGED_MODELS
    from depthcut.recipes import packaged_recipes
    from depthcut.repairs import REPAIRS

    console = Console()
    sections = {
        "methods (--method)": [(entry.name, entry.summary, entry.source) for entry in SEARCHES],
        "metrics (--metric)": [(entry.name, entry.summary, entry.source) for entry in METRICS],
        "packaged models": [(name, model.base_model, model.install) for name, model in PACKAGED_MODELS.items()],
        "texts (SOURCE)": [(name, part.summary, "") for name, part in BUILT_IN.items()],
        "objectives (--objective)": [(entry.name, entry.summary, entry.source) for entry in OBJECTIVES],
        "repairs (--repair)": [(entry.name, entry.summary, entry.source) for entry in REPAIRS],
        "export formats (--to)": [(entry.name, entry.summary, entry.source) for entry in EXPORTS],
        "recipes (depthcut run NAME)": [(recipe.name, recipe.summary, "") for recipe in packaged_recipes()],
    }
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print("families:", ", ".join(sorted(FAMILIES)))


def _list_settings(name: str) -> None:
    """Prints what each registry says of a name, with its settings as they are written.

    Raises:
        InputError: no registry has it; names the nearest.
    """
    from depthcut.calibration import BUILT_IN, text_settings
    from depthcut.registry import unknown_name
    from depthcut.run.recipe import REGISTRIES

    found = [
        (f"{registry.kind} {entry.name}: {entry.summary} ({entry.source})", entry.name, entry.settings())
        for registry in REGISTRIES.values()
        for entry in registry
    ]
    found += [(f"text {part.name}: {part.summary}", part.name, text_settings(part)) for part in BUILT_IN.values()]
    if name not in [known for _, known, _ in found]:
        raise InputError(unknown_name("name", name, list(dict.fromkeys(known for _, known, _ in found))))
    for about, known, settings in found:
        if known != name:
            continue
        print(about)
        for setting in settings.values():
            print(f"  {name},{say(setting.name, setting.default)}  ({setting.kind})")
            print(textwrap.indent(textwrap.fill(setting.meaning, 100), "      "))


def validate(
    file: Annotated[
        str, typer.Argument(help="A recipe by name or file (.yaml), plan.json, scores.json or results.json.")
    ],
) -> None:
    """Check a recipe or a written file without running anything."""
    from depthcut.recipes import check_recipe, find_recipe
    from depthcut.results import GenerationSample, Measurement, Repair, read_list

    path = Path(file)
    if path.suffix != ".json":
        check_recipe(find_recipe(file))
    elif path.name == "scores.json":
        ScoreTable.from_file(path)
    elif path.name == "results.json":
        read_list(Measurement, path)
    elif path.name == "repair.json":
        read_list(Repair, path)
    elif path.name == "generation.json":
        read_list(GenerationSample, path)
    else:
        Plan.from_file(path)
    print(f"{file} is valid")


def schema(
    name: Annotated[str, typer.Argument(help="recipe, plan, scores, results, repair or generation.")] = "recipe",
) -> None:
    """Print the JSON schema of a recipe, with all names and their settings, or of a written file."""
    import json

    from depthcut.registry import unknown_name
    from depthcut.run.recipe import Recipe

    lists = {"results": Measurement, "repair": Repair, "generation": GenerationSample}
    records = {"recipe": Recipe, "plan": Plan, "scores": ScoreTable, **lists}
    if name not in records:
        raise InputError(unknown_name("schema", name, list(records)))
    found: dict[str, Any] = Recipe.schema_with_names() if name == "recipe" else records[name].model_json_schema()  # type: ignore[attr-defined]
    print(json.dumps({"type": "array", "items": found} if name in lists else found, indent=2))
