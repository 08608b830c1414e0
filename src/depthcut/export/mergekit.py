"""A recipe for mergekit that makes the same model of the dense one: a passthrough merge of slices of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.export import EXPORTS, VerificationError
from depthcut.model.lineage import lineage
from depthcut.model.load import resolve
from depthcut.types import InputError

FILE = "mergekit.yaml"


@dataclass(frozen=True)
class Mergekit:
    """`mergekit.yaml`, for removals of whole blocks."""

    note: ClassVar[str] = "make the model with: mergekit-yaml mergekit.yaml OUT"

    def check(self, config: PreTrainedConfig) -> None:
        """Holds all; what a model was made from is known once it is made."""

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        base = lineage(model.config, "mergekit").base_model
        if base.format == "gguf":
            raise InputError("mergekit reads no GGUF, and this model was made from one; leave the format mergekit out")
        blocks = _blocks(model.config)
        if different := _difference(model, blocks):
            raise InputError(
                f"{different} is not the dense model's, since a repair changed it, and mergekit only puts blocks "
                "together; write the format mergekit of a model that was not repaired (--repair none)"
            )
        slices = [{"sources": [{"model": base.source, "layer_range": [begin, end]}]} for begin, end in _runs(blocks)]
        recipe = {"merge_method": "passthrough", "dtype": base.written_dtype or base.dtype, "slices": slices}
        (folder / FILE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        recipe = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        blocks: list[int] = []
        for piece in recipe["slices"]:
            blocks += range(*piece["sources"][0]["layer_range"])
        if different := _difference(model, blocks):
            raise VerificationError(f"the slices of {FILE} do not give the model: {different} differs")


def _blocks(config: PreTrainedConfig) -> list[int]:
    """The dense blocks that the model consists of."""
    found = lineage(config, "mergekit")
    for index, block in enumerate(found.packed):
        layers = set(block.sources.values())
        if len(layers) > 1 or len(block.sources) < len(found.architecture.branches):
            raise InputError(
                f"mergekit puts whole blocks together, and block {index} of this model is made of parts of the dense "
                f"blocks {', '.join(map(str, sorted(layers)))}; remove whole blocks: --unit block"
            )
    return [next(iter(block.sources.values())) for block in found.packed]


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of blocks that follow each other, the end not included."""
    begin = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or blocks[place] != blocks[place - 1] + 1:
            yield blocks[begin], blocks[place - 1] + 1
            begin = place


def _difference(model: PreTrainedModel, blocks: Sequence[int]) -> str:
    """The first tensor that is not the dense model's when its blocks are put together; empty where all are."""
    found = lineage(model.config, "mergekit")
    base = found.base_model
    source = resolve(base.source, revision=base.revision, dtype=str(model.dtype).removeprefix("torch."))
    dense = source.load_model("cpu")
    theirs, ours = found.architecture.block_list(dense), found.architecture.block_list(model)
    for index, block in enumerate(blocks):
        if name := _first_difference(theirs[block], ours[index]):
            return f"{name} of block {index}"
    around: list[tuple[str, Any]] = [("the embedding", "get_input_embeddings"), ("the head", "get_output_embeddings")]
    for what, getter in around:
        if _first_difference(getattr(dense, getter)(), getattr(model, getter)()):
            return what
    return ""


def _first_difference(one: nn.Module, other: nn.Module) -> str:
    tensors = other.state_dict()
    for name, tensor in one.state_dict().items():
        if name not in tensors or not torch.equal(tensor, tensors[name].to(tensor.device)):
            return name
    return ""


EXPORTS.register(
    "mergekit",
    Mergekit,
    summary="mergekit.yaml, a passthrough merge that makes the same model of the dense one; whole blocks, not repaired",
    source="mergekit, arXiv 2403.13257",
)
