"""Layers behind the last block that predict further tokens (MTP), which some checkpoints bring for fast decoding.

transformers does not load them with the model, and they were trained on what the last block of the dense model gives.
They are left out of what is written, its configuration says that there are none, and the run tells so.
Neither torch nor transformers is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from depthcut.model.headers import TensorHeader

COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
"""Entries of a configuration that say how many there are."""

LISTS = frozenset({"mtp_layers_block_type", "mtp_layer_types", "mtp_mlp_layer_types", "mtp_local_layer_ids"})
"""Entries of a configuration that say something of each."""

NAMED = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.(?:.*?\blayers\.(\d+)\.)?")
"""Tensors that are theirs by name, with the layer where it is said."""

BEHIND = re.compile(r"(?:(?:model|language_model|text_model|backbone)\.)*layers\.(\d+)\.")
"""Tensors of blocks and of what is stored as if it were a block behind them."""


@dataclass(frozen=True)
class PredictionLayers:
    """What is stored of them."""

    count: int
    tensors: int
    parameters: int

    def __str__(self) -> str:
        layers = "layer" if self.count == 1 else f"{self.count} layers"
        return (
            f"the {layers} behind the last block that predict{'s' if self.count == 1 else ''} further tokens (MTP, "
            f"{self.parameters:,} parameters)"
        )


def count_of(entries: Mapping[str, Any]) -> int:
    """How many a configuration says that there are."""
    counts = [entries.get(name) for name in COUNTS]
    return max((count for count in counts if isinstance(count, int)), default=0)


def find_prediction_layers(
    entries: Mapping[str, Any], stored: Mapping[str, TensorHeader], num_blocks: int
) -> PredictionLayers | None:
    """The prediction layers that files hold; None where there are none.

    Args:
        entries: of the decoder's configuration.
        stored: by name, from the headers.
        num_blocks: of the decoder; layers from that index on are no blocks.
    """
    layers = {name: layer for name in stored if (layer := _layer_of(name, num_blocks)) is not None}
    if not layers:
        return None
    return PredictionLayers(
        count=count_of(entries) or len(set(layers.values()) - {""}) or 1,
        tensors=len(layers),
        parameters=sum(stored[name].num_elements for name in layers),
    )


def _layer_of(tensor: str, num_blocks: int) -> str | None:
    """Which prediction layer a tensor of a file belongs to: empty where its name does not say, None where to none."""
    if named := NAMED.search(tensor):
        return named[1] or ""
    behind = BEHIND.match(tensor)
    return behind[1] if behind and int(behind[1]) >= num_blocks else None
