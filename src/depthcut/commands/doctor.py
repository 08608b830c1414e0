"""`depthcut doctor`: what a model is, and what can be done with it here."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from depthcut.commands.options import Given, takes
from depthcut.commands.terminal import bytes_text, duration_text
from depthcut.run.options import MODEL

if TYPE_CHECKING:
    from depthcut.preview.doctor import Choice, Diagnosis

WIDTH, INDENT = 120, 12


@takes(MODEL)
def doctor(
    options: Given,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for programs.")] = False,
) -> None:
    """Show what a model is, what can be done with it here, and the cost of a default run; reads no weights."""
    from depthcut.preview.doctor import DEFAULT_SHARE, examine_model
    from depthcut.run.recipe import Recipe

    found = examine_model(Recipe.build(**options, remove=DEFAULT_SHARE))
    if json:
        print(found.to_json(), end="")
        return
    _print(found, f"depthcut prune {found.model.source} --remove {DEFAULT_SHARE}")


def _print(found: Diagnosis, command: str) -> None:
    model = found.model
    stored = f", stored as {model.quantisation}" if model.quantisation else ""
    written = f", written in {model.written_dtype}" if model.written_dtype else ""
    rows = [
        ("model", f"{model.source} ({model.format}): {model.model_type}, {model.num_blocks} blocks"),
        ("blocks", f"of {' and '.join(found.parts)}, in order of execution"),
        ("output", found.gives),
        ("precision", f"computed in {model.dtype}{written}{stored}"),
        ("weights", f"{found.parameters:,} parameters, {bytes_text(found.weight_bytes)} in memory"),
        ("KV cache", f"{found.kv_bytes_per_token:,} bytes a token{_context(found.context)}"),
        ("around", found.carried),
        ("left out", found.left_out),
        ("base", found.base_model or ""),
        ("licence", found.license or ""),
        ("weights", "" if found.has_weights else "none here: only its configuration"),
    ]
    for name, choices in (
        ("units", found.units),
        ("repairs", found.repairs),
        ("exports", found.exports),
        ("engines", found.engines),
    ):
        rows.append((name, ", ".join(choice.name for choice in choices if not choice.refusal) or "none"))
        rows += [("", _refusal(choice)) for choice in choices if choice.refusal]
    run = found.default_run
    rows.append(("run", run.refusal or f"{command}: about {_times(run.seconds)} on {run.device}"))
    if not run.refusal:
        rows.append(("", f"holds about {bytes_text(run.memory_bytes)}; timing, tasks and exports aside"))
    for name, text in rows:
        if text:
            indent = " " * INDENT
            print(textwrap.fill(text, WIDTH, initial_indent=f"{name:<{INDENT}}", subsequent_indent=indent))


def _context(context: int | None) -> str:
    return f", made for {context:,} tokens" if context else ""


def _refusal(choice: Choice) -> str:
    return f"not {choice.name}: {choice.refusal}"


def _times(seconds: dict[str, float]) -> str:
    stages = ", ".join(f"{name} {duration_text(value)}" for name, value in seconds.items())
    return f"{duration_text(sum(seconds.values()))} ({stages})"
