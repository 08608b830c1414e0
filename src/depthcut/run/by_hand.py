"""Plans without a search: from named units, and from plan files that hold only steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from depthcut.model.load import ModelSource
from depthcut.model.units import UnitNames, choose_units
from depthcut.types import InputError, Plan, Record, Step, Unit, require_regular

BY_HAND = "by hand"
"""The method of such plans."""


class Steps(Record):
    """A plan file written by hand; steps that say nothing else are applied."""

    steps: tuple[Step, ...]


def plan_of_units(source: ModelSource, names: UnitNames, *, one_based: bool = False) -> Plan:
    """A plan that removes the named units of a model, one step a block.

    Raises:
        InputError: a name is of no unit of the model.
    """
    chosen = choose_units(names, source.architecture.units(source.provenance.num_blocks), one_based=one_based)
    if not chosen:
        raise InputError("no unit is named; name blocks (21-29) or sublayers (17.attn)")
    steps = [Step(remove=tuple(group)) for _, group in itertools.groupby(chosen, key=lambda unit: unit.layer)]
    return _plan(source, steps)


def read_plan(path: Path, source: ModelSource) -> Plan:
    """A plan from its file: one that a run wrote, or one written by hand that holds nothing but `steps`.

    Raises:
        InputError: it is no plan, or was made for another model.
    """
    require_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # The reader of whole plans says what is wrong.
        content = None
    if isinstance(content, dict) and content.keys() == {"steps"}:
        plan = _plan(source, list(Steps.from_file(path).steps))
    else:
        plan = Plan.from_file(path)
    plan.require_made_for(source.provenance)
    return plan


def _plan(source: ModelSource, steps: list[Step]) -> Plan:
    if not any(step.applied for step in steps):
        steps = [step.model_copy(update={"applied": True}) for step in steps]
    whole = len(source.architecture.branches)
    units: set[Unit] = {unit for step in steps for unit in step.remove}
    are_blocks = all(len({unit.layer for unit in step.remove}) == 1 and len(step.remove) == whole for step in steps)
    return Plan(
        model=source.provenance,
        calibration=None,
        method=BY_HAND,
        unit="block" if are_blocks else "sublayer",
        budget=f"remove {len(steps) if are_blocks else len(units)}",
        steps=tuple(steps),
    )
