"""The model card: the `README.md` of a pruned model, with the metadata that the Hugging Face hub reads.

A card is rendered in many places, so whatever text a model or command brings is escaped for YAML, Markdown and HTML
alike; no `<` of it stands in the file as such.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from depthcut.model.heads import HeadKind, head_named
from depthcut.report.provenance import ON_TEXT, provenance
from depthcut.report.removal import headline, removed_list
from depthcut.report.run import Run
from depthcut.report.table import before_after, columns, data_notes
from depthcut.report.tasks import is_paired, is_task, task_table
from depthcut.results import Measurement

QUALITIES = ON_TEXT

HERE = "path/to/this/directory"
FORM_ENGINES = (
    ("gguf", "llama.cpp", f"llama-server -m {HERE}{{}}/*.gguf"),
    ("nemotron-nas", "vLLM, SGLang", f"vllm serve {HERE}{{}} --trust-remote-code"),
    (
        "zeroed",
        "any other (right answers, but neither smaller nor faster than the dense model)",
        f"vllm serve {HERE}{{}}",
    ),
)
"""Formats, and how an engine loads one from a folder."""
LOADERS: dict[HeadKind, str] = {
    "tokens": "AutoModelForCausalLM",
    "classes": "AutoModelForSequenceClassification",
    "embedding": "AutoModel",
}
PIPELINES = dict(zip(LOADERS.values(), ("text-generation", "text-classification", "feature-extraction"), strict=True))
"""What the hub calls a model, by the class that loads it."""
OWN_TYPES = "depthcut_"
"""What the model type of a checkpoint begins with whose blocks lack sublayers."""


@dataclass(frozen=True)
class Contents:
    """What a directory holds, which decides how each engine loads it.

    Attributes:
        form: `gguf`, `nemotron-nas`, or `hf` where transformers loads it.
        loader: the Auto class of transformers that loads it.
        own_code: whether blocks lack sublayers, so that the checkpoint is of a type of its own and brings code.
        inner: further formats, each in a folder of its name.
    """

    form: str = "hf"
    own_code: bool = False
    loader: str = "AutoModelForCausalLM"
    inner: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Looks into a directory that depthcut wrote."""
        file = folder / "config.json"
        entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        model_type = str(entries.get("model_type", ""))
        form = "gguf" if any(folder.glob("*.gguf")) else model_type if model_type == "nemotron-nas" else "hf"
        inner = tuple(name for name, _, _ in FORM_ENGINES if (folder / name).is_dir())
        loader = LOADERS[head_named((entries.get("architectures") or [""])[0])]
        return cls(form, model_type.startswith(OWN_TYPES), loader, inner)


def write_model_card(path: Path, run: Run, *, base_model: str | None, license: str | None) -> None:
    """Writes the model card; how the model is loaded follows from what lies beside it.

    Args:
        base_model: hub id of the dense model; None leaves it out of the metadata.
        license: identifier of the dense model's licence, as the hub writes it; None leaves it out.
    """
    plan, measurements, contents = run.plan, run.measurements, Contents.of(path.parent)
    name = PurePosixPath(plan.model.source).name
    title = f"{name}, {headline(plan)[:1].lower()}{headline(plan)[1:]}"
    metadata = {
        "base_model": base_model,
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[contents.loader],
        "tags": ["depthcut", "pruned", "depth-pruning", plan.model.model_type],
        "model-index": model_index(title, measurements, PIPELINES[contents.loader]),
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
    of_the_model = [measurement for measurement in measurements if not is_task(measurement)]
    rows, tasks = before_after(of_the_model), task_table(measurements)
    card = environment.get_template("README.md.j2").render(
        front_matter=front_matter({key: value for key, value in metadata.items() if value}),
        title=markdown_text(title),
        plan=plan,
        headline=headline(plan),
        removed=removed_list(plan),
        heads=columns(of_the_model),
        rows=rows,
        notes=data_notes(rows),
        tasks=tasks,
        task_notes=data_notes(tasks.rows),
        contents=contents,
        engines=engines(contents),
        command=run.command,
        recipe=run.recipe,
        license=license,
        base_model=base_model,
        facts=provenance(plan, measurements, run.software, run.repairs),
    )
    path.write_text(card, encoding="utf-8", newline="\n")


def renew_model_card(path: Path, run: Run) -> None:
    """Writes a card again, perhaps in a directory of another format; keeps its base model and licence."""
    known = card_metadata(path)
    write_model_card(path, run, base_model=known.get("base_model"), license=known.get("license"))


def engines(contents: Contents) -> list[tuple[str, str]]:
    """Engines other than transformers, and how each loads the model in the directory, as Markdown."""
    rows = [(engine, f"`{how.format('')}`") for form, engine, how in FORM_ENGINES if form == contents.form]
    if contents.form == "hf" and not contents.own_code:
        rows.append(("vLLM, SGLang, ...", f"whatever serves the dense model serves this: `vllm serve {HERE}`"))
    rows += [(engine, f"`{how.format(f'/{form}')}`") for form, engine, how in FORM_ENGINES if form in contents.inner]
    if contents.own_code and not contents.inner:
        rows.append(("others", f"in another format: `depthcut export {HERE} --to FORMAT -o OUT` (`depthcut ls`)"))
    return rows


def license_of(folder: Path) -> str | None:
    """The licence that the card in a model's directory names; None where there is no card, or none in it."""
    return card_metadata(folder / "README.md").get("license")


def card_metadata(path: Path) -> dict[str, str]:
    """The entries of a card's metadata that are texts; none where there is no card, or its metadata cannot be read."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}  # the hub cannot read it either
    return (
        {key: value for key, value in metadata.items() if isinstance(value, str)} if isinstance(metadata, dict) else {}
    )


def model_index(name: str, measurements: Sequence[Measurement], pipeline: str) -> list[dict[str, object]]:
    """The pruned model's quality by text or task, as the hub reads results; speeds belong to a machine."""
    results = [
        {
            "task": {"type": pipeline},
            "dataset": {"type": _identifier(data_set), "name": data_set},
            "metrics": [{"type": metric, "name": metric, "value": round(measurement.value, 6)}],
        }
        for measurement in measurements
        if measurement.model == "pruned" and math.isfinite(measurement.value)
        for data_set, metric in _quality(measurement)
    ]
    return [{"name": name, "results": results}] if results else []


def _quality(measurement: Measurement) -> list[tuple[str, str]]:
    """Data set and metric of a measurement of quality; nothing where it is of another thing."""
    if measurement.name in QUALITIES:
        return [(measurement.data or "text", measurement.name)]
    if is_task(measurement) and not is_paired(measurement.name):
        task, metric = measurement.name.rsplit("/", 1)
        return [(task, metric)]
    return []


def _identifier(text: str) -> str:
    """The first word of a text, which the hub takes for the identifier of a data set."""
    words = re.findall(r"[\w.-]+", text)
    return words[0] if words else "text"


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
    """Text escaped so that Markdown shows it unchanged, on one line and inside a table cell."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def code_block(text: str, language: str = "sh") -> str:
    """Text as a block of code: a fence longer than any in it, or escaped HTML where the text holds a `<`."""
    if "<" in text:
        return f"<pre><code>{html.escape(text, quote=False)}</code></pre>"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
