"""The model card: the `README.md` of a pruned model, with the metadata that the Hugging Face hub reads.

A card is rendered in many places, so whatever text a model or command brings is escaped for YAML, Markdown and HTML
alike; no `<` of it stands in the file as such.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from depthcut.report.provenance import provenance
from depthcut.report.removal import headline, removed_list
from depthcut.report.table import before_after, columns, data_notes
from depthcut.types import Measurement, Plan, Repair


def write_model_card(
    path: Path,
    *,
    plan: Plan,
    measurements: Sequence[Measurement],
    command: str,
    software: Mapping[str, str],
    repairs: Sequence[Repair] = (),
    base_model: str | None,
    license: str | None,
) -> None:
    """Writes the model card.

    Args:
        command: what reproduces the model, as one would type it.
        software: name to version.
        repairs: what was done to the model after the removal, in order.
        base_model: hub id of the dense model; None leaves it out of the metadata.
        license: identifier of the dense model's licence, as the hub writes it; None leaves it out.
    """
    metadata = {
        "base_model": base_model,
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["depthcut", "pruned", "depth-pruning", plan.model.model_type],
    }
    # The template writes Markdown, not HTML: every value passes one of the filters below instead.
    environment = Environment(
        loader=PackageLoader("depthcut.report", ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown_text
    environment.filters["code"] = code_block
    rows = before_after(measurements)
    name = PurePosixPath(plan.model.source).name
    card = environment.get_template("README.md.j2").render(
        front_matter=front_matter({key: value for key, value in metadata.items() if value is not None}),
        title=markdown_text(f"{name}, {headline(plan)[:1].lower()}{headline(plan)[1:]}"),
        plan=plan,
        headline=headline(plan),
        removed=removed_list(plan),
        heads=columns(measurements),
        rows=rows,
        notes=data_notes(rows),
        command=command,
        facts=provenance(plan, measurements, software, repairs),
    )
    path.write_text(card, encoding="utf-8", newline="\n")


def front_matter(metadata: Mapping[str, object]) -> str:
    """The YAML between two lines of `---`, without a single `<`.

    A renderer that does not know front matter takes it for Markdown, and a tag in it for a tag. YAML can write the
    character as an escape, but only within double quotes.
    """
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    if "<" in text:
        text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, default_style='"')
        text = text.replace("<", r"\x3C")
    return f"---\n{text}---"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line and inside a table cell."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def code_block(text: str) -> str:
    """Text as a block of code: a fence longer than any in it, or escaped HTML where the text holds a `<`."""
    if "<" in text:
        return f"<pre><code>{html.escape(text, quote=False)}</code></pre>"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
