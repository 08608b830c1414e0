"""The report page: one self-contained `report.html` that needs no network and opens from disk.

Numbers are written into the page twice: as tables, by the template, so that they can be read without a script; and
as JSON, for the figures that `page.js` draws. Whatever text a model, a prompt or a command brings cannot run: the
template escapes it, the JSON holds no `<`, the script sets text only, and the page's content security policy allows
exactly the scripts hashed here and no connection.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from depthcut.report.answer import answer
from depthcut.report.provenance import provenance, repair_row
from depthcut.report.removal import headline, path_rows
from depthcut.report.scores import nearest_windows, score_grids
from depthcut.report.table import DENSE, before_after, columns, data_notes
from depthcut.types import InputError, Measurement, Plan, Record, Repair, ScoreTable, UnitSize


class PageData(Record):
    """Everything the page shows, as it stands in the page: `<script type="application/json" id="data">`."""

    plan: Plan
    scores: ScoreTable | None
    measurements: tuple[Measurement, ...]
    unit_sizes: dict[str, UnitSize]
    command: str
    software: dict[str, str]
    repairs: tuple[Repair, ...] = ()
    comparisons: tuple[Plan, ...] = ()


def write_report(
    path: Path,
    *,
    plan: Plan,
    scores: ScoreTable | None,
    measurements: Sequence[Measurement],
    unit_sizes: Mapping[str, UnitSize],
    command: str,
    software: Mapping[str, str],
    repairs: Sequence[Repair] = (),
    comparisons: Sequence[Plan] = (),
) -> None:
    """Writes the report page.

    Args:
        plan: the path; its applied steps are what the page calls removed.
        scores: None where no static scores were computed; the map then shows sizes only.
        measurements: shares of the whole model are shown where `parameters` of `dense` is among them.
        unit_sizes: parameters and key-value bytes of every unit of the dense model, by `17.attn`.
        command: what reproduces the model, as one would type it.
        software: name to version.
        repairs: what was done to the model after the removal, in order.
        comparisons: other paths on the same model; those with this plan's objective are drawn behind it.

    Raises:
        InputError: the plan removes a unit whose size is not given.
    """
    unknown = [str(unit) for step in plan.steps for unit in step.remove if str(unit) not in unit_sizes]
    if unknown:
        raise InputError(
            f"the plan removes {unknown[0]} but does not hold its size, which the report shows; "
            "make the plan with `depthcut search` or `depthcut prune`, which write `unit_sizes` into it"
        )
    data = PageData(
        plan=plan,
        scores=scores,
        measurements=tuple(measurements),
        unit_sizes=dict(unit_sizes),
        command=command,
        software=dict(software),
        repairs=tuple(repairs),
        comparisons=tuple(comparisons),
    )
    rows = before_after(measurements)
    dense_parameters = [row.value for row in measurements if (row.name, row.model) == ("parameters", DENSE)]
    scripts = [
        _with_license("vendor/d3.min.js", "vendor/LICENSE.d3.txt"),
        _with_license("vendor/plot.umd.min.js", "vendor/LICENSE.plot.txt"),
        _resource("page.js"),
    ]
    environment = Environment(
        loader=PackageLoader("depthcut.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    page = environment.get_template("page.html.j2").render(
        plan=plan,
        headline=headline(plan),
        figures=answer(plan, rows),
        command=command,
        heads=columns(measurements),
        rows=rows,
        notes=data_notes(rows),
        path=path_rows(plan, unit_sizes, dense_parameters[-1] if dense_parameters else None),
        shares_known=bool(dense_parameters),
        has_curve=any(step.objective is not None for step in plan.steps),
        grids=score_grids(scores, plan) if scores else [],
        repairs=[repair_row(repair) for repair in repairs],
        windows=nearest_windows(scores.angular) if scores else [],
        facts=provenance(plan, measurements, software, repairs),
        data=json_for_script(data),
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=Markup(" ".join(_hash(script) for script in scripts)),
    )
    # A page whose line ends were translated would not match the hashes of its own policy.
    path.write_text(page, encoding="utf-8", newline="\n")


def json_for_script(record: Record) -> Markup:
    """A record as JSON that stands inside a script element: without `<` nothing can end or open one."""
    return Markup(record.model_dump_json().replace("<", "\\u003c"))


def unbroken(text: str) -> str:
    """A number that a narrow column may break before its standard error, and nowhere else."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}±", " ±")


def _resource(name: str) -> str:
    return resources.files("depthcut.report").joinpath(name).read_text(encoding="utf-8")


def _with_license(script: str, license_file: str) -> str:
    return f"/*\n{_resource(license_file)}*/\n{_resource(script)}"


def _hash(script: str) -> str:
    """The source expression that lets a content security policy run exactly this inline script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
