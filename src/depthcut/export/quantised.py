"""Directories whose weights are quantised by bitsandbytes: 8-bit integers, or NF4.

The maps of the blocks are rounded, each by itself, so that quantising a pruned model and pruning a quantised one give
the same model; embeddings, norms and the output stay as they are. Sources: LLM.int8(), arXiv 2208.07339 (outliers of
the activations are computed apart); QLoRA, arXiv 2305.14314, section 3 (blocks of 64 weights; without double
quantisation).
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from depthcut.export import EXPORTS
from depthcut.export.hf import verify_directory, without_bars, write_directory, write_model
from depthcut.model.heads import HeadKind
from depthcut.model.quantisation import quiet, require_reader, require_unquantised, settle
from depthcut.model.sublayers import register
from depthcut.model.wrappers import auto_class

Scheme = Literal["int8", "nf4"]


@dataclass(frozen=True)
class Quantised:
    """A Hugging Face directory with quantised weights.

    Attributes:
        scheme: what the maps of the blocks are stored as.
    """

    scheme: Scheme

    heads: ClassVar[tuple[HeadKind, ...]] = get_args(HeadKind)
    note: ClassVar[str] = "reading it needs bitsandbytes; rounding costs quality too: depthcut eval measures both"

    def check(self, config: PreTrainedConfig) -> None:
        require_unquantised(config, self.scheme)
        require_reader(self.scheme, f"the format {self.scheme}")

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        write_directory(quantise(model, self.scheme), tokenizer, folder)

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Compares with the model quantised once more, bit for bit."""
        verify_directory(folder, quantise(model, self.scheme), input_ids)


def quantise(model: PreTrainedModel, scheme: Scheme) -> PreTrainedModel:
    """A quantised copy of a model, in eval mode, made by way of a temporary directory."""
    schemes: dict[Scheme, dict[str, Any]] = {
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": model.dtype},
    }
    register()
    quiet()
    with tempfile.TemporaryDirectory() as scratch, without_bars():
        write_model(model, Path(scratch))
        quantised: PreTrainedModel = auto_class(model.config).from_pretrained(
            scratch,
            dtype=model.dtype,
            quantization_config=BitsAndBytesConfig(**schemes[scheme]),
            device_map={"": model.device},
            trust_remote_code=False,
        )
    settle(quantised)
    # The files that it was quantised from are gone; what it comes from is the model's source.
    quantised.name_or_path = quantised.config.name_or_path = model.name_or_path
    quantised.eval()
    return quantised


EXPORTS.register(
    "int8",
    functools.partial(Quantised, "int8"),
    summary="Hugging Face directory with weights in 8-bit integers",
    source="bitsandbytes, arXiv 2208.07339",
)
EXPORTS.register(
    "nf4",
    functools.partial(Quantised, "nf4"),
    summary="Hugging Face directory with weights in 4-bit NF4",
    source="bitsandbytes, arXiv 2305.14314",
)
