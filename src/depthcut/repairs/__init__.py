"""Repairs of a pruned model, one file a kind; each is judged on held-out text and undone where it does not help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.ablation.objectives import objective_for
from depthcut.calibration import Samples
from depthcut.model.branches import Architecture
from depthcut.model.heads import GIVES, head_of
from depthcut.model.precision import round_weights
from depthcut.model.quantisation import DEQUANTISED, quantisation
from depthcut.model.stream import DecoderStream
from depthcut.process.ranks import ALONE, Ranks
from depthcut.registry import Registry
from depthcut.repairs.judge import Judge
from depthcut.results import Repair
from depthcut.types import InputError, Unit


@dataclass(frozen=True)
class Damage:
    """What there is to repair, and with what.

    Attributes:
        dense: the model before the removal; never changed.
        removed: what was taken out of it.
        text: what a repair is fitted to or trained on.
        held_out: what judges it; nothing of it is in `text`.
        memory_budget: bytes that a repair may keep of activations.
        solving_bytes: most that the moments of one map may take while it is solved; None where memory has no bound.
        batch_size: sequences run together.
        folder: where long training keeps its checkpoints, None where nothing is kept.
        ranks: the processes that repair together: all of them do the same, and what is trained they divide.
        advance: called with the percentage of the work that was done since the last call.
    """

    dense: DecoderStream
    removed: frozenset[Unit]
    text: Samples
    held_out: Samples
    memory_budget: int
    solving_bytes: int | None = None
    batch_size: int = 4
    seed: int = 0
    folder: Path | None = None
    advance: Callable[[float], None] = lambda _: None
    ranks: Ranks = ALONE

    def judge(self, objective: str, samples: Samples | None = None) -> Judge:
        """An objective on the held-out text, or on other samples; that of the model's head where it ends otherwise."""
        return Judge(
            self.dense,
            samples or self.held_out,
            objective_for(objective, self.dense.head),
            batch_size=self.batch_size,
            memory_budget=self.memory_budget // 4,
        )


@dataclass(frozen=True)
class Repaired:
    """A repaired model and how it came about.

    Attributes:
        units: by unit that was refitted or replaced, the share of its error on held-out text that is left.
        curve: training loss by step.
        settings: hyper-parameters that followed from the model.
    """

    model: PreTrainedModel
    units: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    settings: dict[str, int | float] = field(default_factory=dict)


class RepairMethod(Protocol):
    """One way of repairing. A frozen dataclass whose fields are its hyper-parameters.

    Attributes:
        replaces_units: whether it begins from the dense model and puts modules in place of what was removed.
        judged_by: the objective that has to fall on held-out text for the result to be kept.
        num_sequences: how many it trains on, one after the other; 0 where it is solved.
    """

    @property
    def replaces_units(self) -> bool: ...

    @property
    def judged_by(self) -> str: ...

    @property
    def num_sequences(self) -> int: ...

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where the family or the machine does not allow it; needs no weights."""
        ...

    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        """A repaired copy of the pruned model, which stays as it is; both share the tensors that are not changed."""
        ...


REPAIRS: Registry[RepairMethod] = Registry("repair", "depthcut.repairs", "depthcut.repairs")


def parse_repairs(text: str) -> list[tuple[str, RepairMethod]]:
    """Reads `refit`, `lora,rank=8,steps=100` or several joined with `+`, which are done in that order; `none` is none.

    Raises:
        InputError: a name or a hyper-parameter is unknown, or a value is out of range.
    """
    if text.strip() == "none":
        return []
    chain = [REPAIRS.parse(part) for part in text.split("+")]
    late = [name for name, method in chain[1:] if method.replaces_units]
    if late:
        raise InputError(
            f"{late[0]} puts modules in place of what was removed, so it comes first and once; write {late[0]}+..."
        )
    return chain


def require_branches(architecture: Architecture, name: str) -> None:
    """Raises InputError in families whose blocks go as a whole: no single map writes to their stream."""
    if architecture.whole:
        raise InputError(
            f"the repair {name} puts something in place of single sublayers, and in this family a block goes as a "
            "whole; use distill or lora, or --repair none"
        )


def check_repairs(chain: list[tuple[str, RepairMethod]], architecture: Architecture, config: PreTrainedConfig) -> None:
    """Raises InputError where a repair cannot be made on such a model; needs no weights."""
    from depthcut.repairs.training.schedule import Schedule  # which needs what stands here

    stored = quantisation(config)
    for name, method in chain:
        if stored is not None and stored not in DEQUANTISED:
            raise InputError(
                f"the repair {name} makes weights anew and cannot write them into {stored} ones; repair the model "
                f"before it is quantised: prune the unquantised one with --repair {name}, then depthcut export --to "
                "nf4 or int8, or prune this one with --repair none"
            )
        if method.num_sequences and isinstance(method, Schedule) and head_of(config) != "tokens":
            raise InputError(
                f"the repair {name} trains on tokens that follow, and this model {GIVES[head_of(config)]}; use refit, "
                "linear, low-rank, bias or seam, or --repair none"
            )
        method.check(architecture, config)


def repair_and_judge(
    name: str, method: RepairMethod, damage: Damage, pruned: PreTrainedModel
) -> tuple[PreTrainedModel, Repair]:
    """Repairs, and keeps the result only where what judges it falls on the held-out text.

    Returns:
        The repaired model, or the one that was given, and what was measured.
    """
    judge = damage.judge(method.judged_by)
    # One judges for all, who might otherwise disagree by a rounding.
    before = damage.ranks.from_first(lambda: judge(pruned))
    repaired = method.repair(damage, pruned)
    # What is judged, measured and written is one model.
    round_weights(repaired.model, list(pruned.parameters()))
    after = damage.ranks.from_first(lambda: judge(repaired.model))
    helps = after < before
    record = Repair(
        method=name,
        settings={field.name: getattr(method, field.name) for field in dataclasses.fields(method)}  # type: ignore[arg-type]
        | repaired.settings,
        objective=objective_for(method.judged_by, damage.dense.head),
        text=damage.text.description,
        held_out=damage.held_out.description,
        before=before,
        after=after,
        kept=helps,
        units=repaired.units,
        curve=repaired.curve,
    )
    return (repaired.model if helps else pruned), record
