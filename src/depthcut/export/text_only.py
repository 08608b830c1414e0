"""The decoder of a model that reads images too, by itself: an ordinary causal LM."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthcut.export import EXPORTS
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.wrappers import decoder_config, is_wrapper
from depthcut.types import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextOnly:
    """The language model alone; tensors are those of the whole model."""

    note: ClassVar[str] = "the language model alone: it reads no images"

    def check(self, config: PreTrainedConfig) -> None:
        """Holds decoders that transformers knows by themselves.

        Raises:
            InputError: the model is its own decoder, or the decoder is no causal LM of transformers.
        """
        if not is_wrapper(config):
            raise InputError(
                f"a {config.model_type} model is a language model and nothing else; leave the format text-only out"
            )
        if type(decoder_config(config)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise InputError(
                f"the decoder of a {config.model_type} model is no causal LM that transformers loads by itself; write "
                "the whole model: the format hf"
            )

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        write_directory(decoder_of(model), tokenizer, folder)

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        verify_directory(folder, decoder_of(model), input_ids)


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside of a larger model, with its tensors."""
    config = copy.deepcopy(decoder_config(model.config))
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if hasattr(model.config, "depthcut"):
        config.depthcut = model.config.depthcut
    with torch.device("meta"):
        alone: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    [(name, empty)] = [(name, part) for name, part in alone.named_children() if hasattr(part, "embed_tokens")]
    inside = next(part for part in model.modules() if type(part) is type(empty))
    setattr(alone, name, inside)
    alone.set_output_embeddings(model.get_output_embeddings())
    alone.eval()
    return alone


EXPORTS.register(
    "text-only",
    TextOnly,
    summary="the language model of a multimodal one, by itself",
    source="transformers",
)
