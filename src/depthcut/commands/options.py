"""Options of the command line: those of a run, made from the fields of `Options`, and those that write or show it."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from depthcut.registry import split_names
from depthcut.run.options import FORMS, PANELS, RUN, Options, option_of
from depthcut.types import InputError, Record

Given = dict[str, Any]
"""What a command was given of the fields that it takes, by name."""

Output = Annotated[Path, typer.Option("--output-dir", "-o", help="Directory to write.", rich_help_panel=FORMS)]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an earlier result in the output directory.", rich_help_panel=FORMS),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="USER/NAME",
        help="Push OUT to this repository of the Hugging Face hub; a new one is private.",
        rich_help_panel=FORMS,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=RUN)]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Evaluate one of N shares of the search only; see depthcut merge.",
        rich_help_panel=RUN,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        metavar="N",
        help="Choose samples, lengths and repairs so that the run takes about so long here; what is given stays.",
        rich_help_panel=RUN,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only print the plan, or the cost of the search, and the cost of the run.",
        rich_help_panel=RUN,
    ),
]
DeviceProfileOption = Annotated[
    str | None,
    typer.Option(
        "--device-profile",
        help="Device for --dry-run: here (measured), a100, h100, h200 or rtx4090.",
        rich_help_panel=RUN,
    ),
]
Devices = Annotated[int | None, typer.Option("--devices", help="Number of devices for --dry-run.", rich_help_panel=RUN)]


def takes(
    *fields: str,
    without: tuple[str, ...] = (),
    record: type[Record] | None = None,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
    hands_to: Callable[..., None] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of some fields of a run; it is called with what was given of them as `options`.

    Args:
        fields: names of fields of `Options`, or headings for all fields under them.
        without: fields under those headings that the command does not take.
        record: what is asked beside a run; all its fields with a heading are options too.
        defaults: of this command, where they are not the field's.
        hands_to: a function whose parameters but the first the command takes too, as keyword arguments to hand on.
    """
    known = {
        name: field
        for name, field in Options.model_fields.items()
        if name not in without and (name in fields or _about(field)["panel"] in fields)
    }
    if record is not None:
        known |= {name: field for name, field in record.model_fields.items() if option_of(field)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            if known:
                given["options"] = {name: _read(name, known[name], given.pop(name)) for name in known}
            command(**given)

        own = dict(inspect.signature(command, eval_str=True).parameters)
        if hands_to is not None:
            del own["given"]
            own |= dict(list(inspect.signature(hands_to, eval_str=True).parameters.items())[1:])
        parameters = [_parameter(name, field, defaults.get(name, field.default)) for name, field in known.items()]
        # By name alone, so that what is required may stand behind what is not.
        by_name = inspect.Parameter.KEYWORD_ONLY
        parameters += [parameter.replace(kind=by_name) for name, parameter in own.items() if name != "options"]
        called.__signature__ = inspect.Signature(sorted(parameters, key=_place))  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _about(field: FieldInfo) -> dict[str, Any]:
    about = option_of(field)
    assert about is not None
    return about


def _read(name: str, field: FieldInfo, given: Any) -> Any:
    """What the field holds: lists are written with commas, or by giving the option several times.

    Raises:
        InputError: a list names nothing.
    """
    if typing.get_origin(field.annotation) is not tuple or not isinstance(given, str):
        return given
    items = split_names(given)
    if given and not items:
        raise InputError(f"--{name.replace('_', '-')} {given!r} names nothing; give names with commas, or leave it out")
    return items


def _parameter(name: str, field: FieldInfo, default: Any) -> inspect.Parameter:
    """A field as typer takes it."""
    kinds = set(_plain_types(field.annotation))
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    about = _about(field)
    flags = about.get("flags", [])
    plain: Any = next((kind for kind in (bool, int) if kind in kinds), str)
    if plain is bool and not flags:
        word = name.replace("_", "-")
        flags = [f"--{word}" if default is False else f"--{word}/--no-{word}"]
    annotation = list[str] if about.get("separate") else plain if default is not None else plain | None
    info: Any
    if name == "model":
        info = typer.Argument(help=field.description, callback=_checked)
    else:
        words = {"help": field.description, "rich_help_panel": about["panel"], "metavar": "|".join(choices) or None}
        # The revision is eager, so that it is known when the model is looked at.
        info = typer.Option(*flags, is_eager=name == "revision", **words)
    if isinstance(default, tuple):
        default = list(default) if about.get("separate") else ",".join(default)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.is_required() else default,
        annotation=Annotated[annotation, info],
    )


def _plain_types(annotation: Any) -> Iterator[Any]:
    """The members of a union type, or the type itself."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    return (member for member in members if member is not types.NoneType)


def _place(parameter: inspect.Parameter) -> int:
    """Orders the parameters of a command: the model, its other arguments, then options by heading."""
    if parameter.name == "model":
        return -2
    panels = [getattr(info, "rich_help_panel", None) for info in getattr(parameter.annotation, "__metadata__", ())]
    return PANELS.index(panels[0]) if panels and panels[0] in PANELS else -1


def _checked(context: typer.Context, model: str) -> str:
    """Checks the model's configuration, before torch is imported; returns the model's name."""
    from depthcut.model.checkpoint import check_model

    check_model(model, context.params.get("revision"))
    return model
