"""Trains some of a pruned model's own weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.repairs import Damage, Repaired
from depthcut.repairs.training.copies import copy_to_train, trained, with_tensors
from depthcut.repairs.training.goals import Goal
from depthcut.repairs.training.schedule import Schedule
from depthcut.repairs.training.trainer import train


def train_weights(
    damage: Damage,
    pruned: PreTrainedModel,
    names: Collection[str],
    goal: Goal,
    schedule: Schedule,
    learning_rate: float,
    folder: Path,
) -> Repaired:
    """A model with the named parameters trained; in float32, and rounded to the model's type once, at the end."""
    model = copy_to_train(pruned, names)
    curve = train(model, goal, schedule, learning_rate, damage, folder)
    return Repaired(with_tensors(pruned, trained(model)), curve=curve, settings={"learning_rate": learning_rate})
