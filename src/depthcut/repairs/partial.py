"""Healing of few whole weights: the output head and the last blocks (Lu et al., arXiv 2411.15558)."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.repairs import REPAIRS, Damage, Repaired
from depthcut.repairs.training.folder import training_folder
from depthcut.repairs.training.goals import NextToken
from depthcut.repairs.training.schedule import Count, Rate, Schedule, counting_sequences


@dataclass(frozen=True)
class Partial(Schedule):
    """Trains every weight of the last blocks, and the output head, on the loss of the text.

    A head that is tied to the input embedding stays as it is unless `tied` is set: the one matrix would change what
    all the frozen blocks read, and untying it would make the model larger and another one for engines.

    Attributes:
        learning_rate: at its highest.
        blocks: how many of the last blocks; all of them where there are fewer.
        tied: train the head also where it is the input embedding, in both roles.
    """

    learning_rate: Rate = 3e-4
    blocks: Count = 3
    tied: bool = False

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Takes every model."""

    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        """The model with other weights in these places."""
        from depthcut.repairs.training.weights import train_weights  # the Trainer takes a second to import

        names = self.names(pruned, damage.dense.architecture)
        damage = counting_sequences(damage, self.num_sequences)
        with training_folder(damage, self, pruned) as folder:
            return train_weights(damage, pruned, names, NextToken(damage.text), self, self.learning_rate, folder)

    def names(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        """Names of the parameters that are trained."""
        modules = list(architecture.block_list(model))[-self.blocks :]
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if self.tied or head.weight is not embedding.weight:
            modules.append(head)
        chosen = {id(parameter) for module in modules for parameter in module.parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]


REPAIRS.register(
    "partial", Partial, summary="trains the output head and the last 3 blocks", source="Lu et al., arXiv 2411.15558"
)
