"""LoRA healing on the loss of the text, over the model's weights or 4-bit copies of them (UIDL, arXiv 2403.17887)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.repairs import REPAIRS, Damage, Repaired
from depthcut.repairs.training.folder import training_folder
from depthcut.repairs.training.goals import NextToken
from depthcut.repairs.training.schedule import counting_sequences, require_packages
from depthcut.repairs.training.uidl import LoraSettings


@dataclass(frozen=True)
class LoRA(LoraSettings):
    """Trains low-rank changes of the linear maps, and merges them into the weights."""

    packages: ClassVar[tuple[str, ...]] = ("peft",)
    nf4: ClassVar[bool] = False

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where a package is missing."""
        require_packages(self.packages)

    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        """The model with the changes merged; raises InputError where none of the chosen sublayers is left."""
        from depthcut.repairs.training.adapters import train_adapters  # peft takes a second to import

        damage = counting_sequences(damage, self.num_sequences)
        with training_folder(damage, self, pruned) as folder:
            return train_adapters(damage, pruned, NextToken(damage.text), self, folder, nf4=self.nf4)


@dataclass(frozen=True)
class QLoRA(LoRA):
    """The same over NF4 copies of the blocks' linear maps; what is merged into are the weights, in their own type.

    Without a GPU NF4 is slow: about 2 x 64 tokens an update.
    """

    packages: ClassVar[tuple[str, ...]] = ("peft", "bitsandbytes")
    nf4: ClassVar[bool] = True


REPAIRS.register(
    "lora", LoRA, summary="LoRA on the loss of the text, merged afterwards", source="UIDL, arXiv 2403.17887"
)
REPAIRS.register(
    "qlora", QLoRA, summary="LoRA trained over 4-bit (NF4) copies of the weights", source="UIDL, arXiv 2403.17887"
)
