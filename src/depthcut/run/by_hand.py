"""A plan of units that are named, without a search."""

from __future__ import annotations

import itertools

from depthcut.model.load import ModelSource
from depthcut.model.units import UnitNames, choose_units
from depthcut.run.plan_file import plan_of_steps
from depthcut.types import InputError, Plan, Step


def plan_of_units(source: ModelSource, names: UnitNames, *, one_based: bool = False) -> Plan:
    """A plan that removes the named units of a model, one step a block.

    Raises:
        InputError: a name is of no unit of the model.
    """
    chosen = choose_units(names, source.architecture.units(source.provenance.num_blocks), one_based=one_based)
    if not chosen:
        raise InputError("no unit is named; name blocks (21-29) or sublayers (17.attn)")
    steps = [Step(remove=tuple(group)) for _, group in itertools.groupby(chosen, key=lambda unit: unit.layer)]
    return plan_of_steps(steps, source.provenance, len(source.architecture.branches))
