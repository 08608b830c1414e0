"""Models that carry a decoder inside, and read images, video or sound beside the text: the decoder is what is pruned.

Such a model is loaded with its own class and stays whole; depthcut runs it on text alone. The row of its decoder's
family describes the blocks, and where they are is a path from the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depthcut.model.heads import auto_class_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_BLOCKS = "model.language_model.layers"
BLOCKS = {
    "emu3": "model.text_model.layers",
    "idefics2": "model.text_model.layers",
    "idefics3": "model.text_model.layers",
    "llama4": "language_model.model.layers",
    "nemotron_h_omni": "language_model.model.layers",
    "smolvlm": "model.text_model.layers",
}
"""Where the list of the decoder's blocks is, by the type of the whole model."""

PLAIN_COUNT = ("num_hidden_layers",)
COUNTS = {
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
        ("decoder_layers",),
    ),
    "longcat_flash": ("num_layers",),
    "whisper": ("decoder_layers",),
    "xlstm": ("num_hidden_layers", "num_blocks"),
}
"""Where a decoder's configuration says how many blocks there are, by type, where elsewhere than most."""

LIKE = {
    "emu3_text_model": "llama",
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
    decoder = decoder_config(config)
    return int(getattr(decoder, COUNTS.get(decoder.model_type, PLAIN_COUNT)[0]))


def set_num_blocks(decoder: PreTrainedConfig, count: int) -> None:
    """Has a decoder's configuration say how many blocks there are, in place."""
    for name in COUNTS.get(decoder.model_type, PLAIN_COUNT):
        setattr(decoder, name, count)


def layer_config(decoder: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """What a decoder's configuration says of one block, where blocks have settings of their own."""
    if not getattr(decoder, "is_heterogeneous", False):
        return decoder
    found: PreTrainedConfig = decoder.per_layer_config[layer]
    return found


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a model carries its decoder inside of something larger."""
    from transformers.models.auto import modeling_auto as auto

    mappings = (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING)
    return decoder_config(config) is not config and any(type(config) in mapping for mapping in mappings)


def blocks_of_wrapper(config: PreTrainedConfig) -> str:
    """Dotted path of the list of blocks, from the whole model."""
    return BLOCKS.get(config.model_type, DEFAULT_BLOCKS)


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class of transformers that loads a model of this configuration."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    sees = is_wrapper(config) and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else auto_class_of(head_of(config))
