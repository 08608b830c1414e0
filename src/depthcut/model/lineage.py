"""What a written model was made from: its dense model, and where each of its sublayers comes from."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedConfig

from depthcut.model.architectures import find_architecture
from depthcut.model.branches import Architecture
from depthcut.model.packing import PackedBlock, pack
from depthcut.types import InputError, Plan, Provenance, Removal


@dataclass(frozen=True)
class Lineage:
    """Where a pruned model came from.

    Attributes:
        base_model: the dense model.
        packed: the pruned model's blocks, with the dense blocks that their sublayers come from.
    """

    base_model: Provenance
    architecture: Architecture
    packed: tuple[PackedBlock, ...]


def lineage(config: PreTrainedConfig, form: str) -> Lineage:
    """The lineage of a model by its configuration.

    Args:
        form: the export format that asks, for the error.

    Raises:
        InputError: depthcut did not make the model.
    """
    said = getattr(config, "depthcut", None)
    try:
        base_model = Provenance.model_validate(said["base_model"])  # type: ignore[index]
        removed = TypeAdapter(Removal).validate_python(said["removed"])  # type: ignore[index]
    except (TypeError, KeyError, ValidationError) as error:
        raise InputError(
            f"the format {form} says what became of each block of a dense model, and config.json does not say which "
            "model this was made from; give a directory that depthcut wrote"
        ) from error
    architecture = find_architecture(config)
    units = architecture.units(base_model.num_blocks)
    return Lineage(base_model, architecture, tuple(pack(units, removed, architecture)))


def layer_map(plan: Plan, architecture: Architecture) -> list[dict[str, int]]:
    """By block of the pruned model, the dense block that each of its sublayers was: `{"attn": 17, "ffn": 18}`."""
    units = architecture.units(plan.model.num_blocks)
    return [dict(block.sources) for block in pack(units, plan.removed, architecture)]
