"""A stage of a run: the repairs of its recipe, one after the other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.process.progress import progress
from depthcut.process.ranks import ALONE, Ranks
from depthcut.repairs import Damage, repair_and_judge
from depthcut.repairs.training.schedule import Schedule
from depthcut.results import Repair
from depthcut.run.recipe import Recipe
from depthcut.run.session import Session
from depthcut.types import InputError, Plan

JUDGING_SHARE = 16
"""One sequence of the repair text in so many judges whether a repair is kept, and is fitted to by none."""

CHECKPOINTS = "checkpoints"

USES_FSDP, FSDP_VERSION, USES_DEEPSPEED = "ACCELERATE_USE_FSDP", "FSDP_VERSION", "ACCELERATE_USE_DEEPSPEED"
"""What accelerate sets to `true`, and to 1 or 2, for the processes that it starts so."""


def check_division(recipe: Recipe, ranks: Ranks) -> None:
    """Raises InputError where the processes cannot train as they were started; needs no weights."""
    fsdp = os.environ.get(USES_FSDP) == "true"
    for name, method in recipe.repairs:
        if method.num_sequences and os.environ.get(USES_DEEPSPEED) == "true":
            raise InputError(
                f"{name} puts its own optimiser and checkpoints in the place of DeepSpeed's; leave that out of "
                "accelerate's settings, or divide weights by FSDP: accelerate launch --use_fsdp --fsdp_version 2"
            )
        if method.num_sequences and fsdp and os.environ.get(FSDP_VERSION, "1") != "2":
            raise InputError(
                f"{name} trains some parameters of a block and freezes others, which the first FSDP flattens into one; "
                "give accelerate launch --fsdp_version 2"
            )
        if fsdp and name == "qlora":
            raise InputError("4-bit weights are not divided by FSDP; give lora, or start the ranks without FSDP")
        if isinstance(method, Schedule) and method.num_sequences and method.batch_size % ranks.count:
            raise InputError(
                f"{name} trains on {method.batch_size} sequences an update, which {ranks.count} ranks cannot divide "
                f"evenly; give {name},batch_size={-(-method.batch_size // ranks.count) * ranks.count}"
            )


def repair(
    loaded: Session, plan: Plan, pruned: PreTrainedModel, folder: Path | None, ranks: Ranks = ALONE
) -> tuple[PreTrainedModel, tuple[Repair, ...]]:
    """The model after the recipe's repairs, one after the other, and what each of them did.

    Args:
        ranks: they train together. What is solved before a training is solved by each of them; what comes after the
            last one, by the first alone.
    """
    if not loaded.recipe.repairs or not plan.removed:
        return pruned, ()
    num_samples = len(loaded.repair_text.input_ids)
    text, held_out = loaded.repair_text.split(num_samples - max(1, num_samples // JUDGING_SHARE))
    records: list[Repair] = []
    last_trained = max((i for i, (_, r) in enumerate(loaded.recipe.repairs) if r.num_sequences), default=-1)
    for index, (name, method) in enumerate(loaded.recipe.repairs):
        if index > last_trained and not ranks.is_first:
            break
        with progress(f"repairing by {name}, %", 100) as percent:
            damage = Damage(
                dense=loaded.stream,
                removed=frozenset(plan.removed),
                text=text,
                held_out=held_out,
                memory_budget=loaded.room.kept,
                solving_bytes=loaded.room.solving,
                batch_size=loaded.recipe.batch_size,
                seed=loaded.recipe.seed,
                folder=None if folder is None else folder / CHECKPOINTS / str(len(records)),
                advance=percent,
                ranks=ranks if index <= last_trained else ALONE,
            )
            pruned, record = repair_and_judge(name, method, damage, pruned)
        records.append(record)
    if folder is not None and ranks.is_first:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return pruned, tuple(records)
