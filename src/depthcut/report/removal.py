"""What a plan removed, in words and in sizes: the headline, the list of the units, and the path step by step.

Blocks are 0-based, in the numbering of the dense model. Sizes are those of the dense model's units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from depthcut.report.table import UNKNOWN, change_text, value_text
from depthcut.types import Plan

_SINGULAR = {"attn": "attention", "ffn": "FFN", "mixer": "mixer", "block": "block"}
_PLURAL = {"attn": "attentions", "ffn": "FFNs", "mixer": "mixers", "block": "blocks"}


@dataclass(frozen=True)
class PathRow:
    """One step of a path as text.

    Attributes:
        parameters: change of the whole model's parameters after this step, or the number that left with it where
            the model's total is not known.
        kv_bytes: the key-value cache per token after this step.
    """

    order: int
    removed: str
    objective: str
    parameters: str
    kv_bytes: str
    applied: bool


def headline(plan: Plan) -> str:
    """The applied removal in a line: `8 of 30 blocks removed`, `9 attentions and 5 FFNs removed`."""
    kinds = [unit.kind for unit in plan.removed]
    if not kinds:
        return "Nothing removed"
    if plan.unit == "block":
        return f"{len(removed_blocks(plan))} of {_counted(plan.model.num_blocks, 'block', 'blocks')} removed"
    parts = [_counted(kinds.count(kind), _SINGULAR[kind], _PLURAL[kind]) for kind in _SINGULAR if kind in kinds]
    return " and ".join(parts) + " removed"


def removed_list(plan: Plan) -> str:
    """Which units are gone: `blocks 12–17, 25, 26`, or `block 7; attention of blocks 3, 5, 6; FFN of block 20`."""
    gone = removed_blocks(plan)
    parts = [f"{_noun(gone)} {ranges(gone)}"] if gone else []
    for kind, name in _SINGULAR.items():
        layers = [unit.layer for unit in plan.removed if unit.kind == kind and unit.layer not in gone]
        if layers:
            parts.append(f"{name} of {_noun(layers)} {ranges(layers)}")
    return "; ".join(parts)


def shares_removed(plan: Plan, dense_parameters: float | None = None) -> list[float]:
    """Of the parameters, the share that is gone after every step: of the whole model's, or of its units'."""
    whole = dense_parameters or sum(size.parameters for size in plan.unit_sizes.values())
    removed = (sum(plan.unit_sizes[str(unit)].parameters for unit in step.remove) for step in plan.steps)
    return [parameters / whole for parameters in accumulate(removed)]


def path_rows(plan: Plan, dense_parameters: float | None) -> list[PathRow]:
    """Every step of the path, applied or not, with what has left the model after it."""
    kv_bytes = sum(size.kv_bytes_per_token for size in plan.unit_sizes.values())
    parameters = 0
    rows: list[PathRow] = []
    for order, step in enumerate(plan.steps, start=1):
        sizes = [plan.unit_sizes[str(unit)] for unit in step.remove]
        parameters += sum(size.parameters for size in sizes)
        kv_bytes -= sum(size.kv_bytes_per_token for size in sizes)
        rows.append(
            PathRow(
                order=order,
                removed=", ".join(str(unit) for unit in step.remove),
                objective=UNKNOWN if step.objective is None else value_text(step.objective, "number", 4),
                parameters=change_text(dense_parameters, dense_parameters - parameters)
                if dense_parameters
                else value_text(-parameters, "count", 4),
                kv_bytes=value_text(kv_bytes, "bytes"),
                applied=step.applied,
            )
        )
    return rows


def removed_blocks(plan: Plan) -> list[int]:
    """The blocks of which nothing is left: removed as a block, or without their FFN and the sublayer before it."""
    if plan.unit == "block":
        return sorted({unit.layer for unit in plan.removed})
    without_ffn = {unit.layer for unit in plan.removed if unit.kind == "ffn"}
    return sorted({unit.layer for unit in plan.removed if unit.kind != "ffn" and unit.layer in without_ffn})


def ranges(layers: Iterable[int]) -> str:
    """Ascending block indices, runs of three and more written as one: `12–17, 25, 26`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _noun(layers: list[int]) -> str:
    return "block" if len(layers) == 1 else "blocks"


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"
