"""Plans from files: whole ones, and those written by hand that hold nothing but steps. Torch is not needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from depthcut.types import Plan, Provenance, Record, Step, Unit, require_regular

BY_HAND = "by hand"
"""The method of plans that no search made."""


class Steps(Record):
    """A plan file written by hand; steps that say nothing else are applied."""

    steps: tuple[Step, ...]


def read_plan(path: Path, model: Provenance, units_per_block: int) -> Plan:
    """A plan from its file: one that a run wrote, or one written by hand that holds nothing but `steps`.

    Args:
        model: that the plan has to be for.

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
        plan = plan_of_steps(Steps.from_file(path).steps, model, units_per_block)
    else:
        plan = Plan.from_file(path)
    plan.require_made_for(model)
    return plan


def plan_of_steps(steps: Sequence[Step], model: Provenance, units_per_block: int) -> Plan:
    """A plan of nothing but steps; where none is marked as applied all are."""
    if not any(step.applied for step in steps):
        steps = [step.model_copy(update={"applied": True}) for step in steps]
    units: set[Unit] = {unit for step in steps for unit in step.remove}
    are_blocks = all(
        len({unit.layer for unit in step.remove}) == 1 and len(step.remove) in (units_per_block, *(1,) * is_whole(step))
        for step in steps
    )
    return Plan(
        model=model,
        calibration=None,
        method=BY_HAND,
        unit="block" if are_blocks else "sublayer",
        budget=f"remove {len(steps) if are_blocks else len(units)}",
        steps=tuple(steps),
    )


def is_whole(step: Step) -> bool:
    """Whether a step names a block as a whole."""
    return all(unit.kind == "block" for unit in step.remove)
