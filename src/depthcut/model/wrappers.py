"""Models that carry a decoder inside, and read images, video or sound beside the text: the decoder is what is pruned.

Such a model is loaded with its own class and stays whole; depthcut runs it on text alone. The row of its decoder's
family describes the blocks, and where they are is a path from the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_BLOCKS = "model.language_model.layers"
BLOCKS = {
    "idefics2": "model.text_model.layers",
    "idefics3": "model.text_model.layers",
    "llama4": "language_model.model.layers",
    "nemotron_h_omni": "language_model.model.layers",
    "smolvlm": "model.text_model.layers",
}
"""Where the list of the decoder's blocks is, by the type of the whole model."""

LIKE = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Decoders that exist inside of such a model alone, and the family whose blocks theirs are like."""


def decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that says what the decoder is: all of it where there is nothing else."""
    return config.get_text_config(decoder=True)


def num_blocks(config: PreTrainedConfig) -> int:
    """Blocks of the decoder."""
    return int(decoder_config(config).num_hidden_layers)


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a model carries its decoder inside of something larger."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return decoder_config(config) is not config and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def blocks_of_wrapper(config: PreTrainedConfig) -> str:
    """Dotted path of the list of blocks, from the whole model."""
    return BLOCKS.get(config.model_type, DEFAULT_BLOCKS)


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class of transformers that loads a model of this configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_wrapper(config) else AutoModelForCausalLM
