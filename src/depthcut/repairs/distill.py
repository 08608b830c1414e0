"""Healing by distillation: KL to the dense model's answers, of which the likeliest tokens are kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.repairs import REPAIRS, Damage, Repaired
from depthcut.repairs.training.folder import training_folder
from depthcut.repairs.training.goals import ask_teacher
from depthcut.repairs.training.schedule import Count, counting_sequences, require_packages, training_rows
from depthcut.repairs.training.uidl import LoraSettings

FULL_RATE = 1e-4
"""Highest learning rate of whole weights, where none is given; UIDL's are for LoRA."""


@dataclass(frozen=True)
class Distill(LoraSettings):
    """Trains LoRA, or every weight, so that the model answers as the dense one does.

    Attributes:
        train: `full` takes about four times the model's memory; `rank`, `modules` and `dropout` then say nothing.
        top_k: tokens of each answer that are kept one by one; the others count as one.
    """

    judged_by: ClassVar[str] = "kl"
    train: Literal["lora", "full"] = "lora"
    top_k: Count = 64

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where a package is missing."""
        require_packages(("peft",) if self.train == "lora" else ())

    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        """The distilled model; raises InputError where none of the chosen sublayers is left."""
        from depthcut.repairs.training.adapters import train_adapters  # peft takes a second to import
        from depthcut.repairs.training.weights import train_weights

        rows = training_rows(damage.text, self.num_sequences, damage.seed)
        damage = counting_sequences(damage, len(torch.unique(rows)) + self.num_sequences)
        with training_folder(damage, self, pruned) as folder:
            teacher = ask_teacher(damage, rows, self.top_k, folder)
            if self.train == "lora":
                return train_adapters(damage, pruned, teacher, self, folder)
            names = [name for name, _ in pruned.named_parameters()]
            return train_weights(damage, pruned, names, teacher, self, self.learning_rate or FULL_RATE, folder)


REPAIRS.register(
    "distill",
    Distill,
    summary="KL to the dense model's kept answers, by LoRA or all weights",
    source="Minitron, arXiv 2407.14679",
)
