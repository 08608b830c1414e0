"""Random models of a few blocks that read images, and an input with an image for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import shape_parts
import tiny
from depthcut.export import hf

IMAGE = tiny.BYTE_VOCABULARY
"""The token that stands for a part of an image; two more follow."""

TEXT = tiny.SHAPE | {"vocab_size": tiny.BYTE_VOCABULARY + 3}
SIGHT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
QWEN_SIGHT: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
    "in_channels": 3,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": IMAGE + 2}
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
MARKS = {"image_token_index": IMAGE, "boi_token_index": IMAGE + 1, "eoi_token_index": IMAGE + 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma3": MARKS
    | {
        "text_config": TEXT | tiny.SLIDING | {"model_type": "gemma3_text"},
        "vision_config": SIGHT | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": TEXT
        | shape_parts.SHARING
        | {"model_type": "gemma4_text", "vocab_size_per_layer_input": tiny.BYTE_VOCABULARY + 3},
        "vision_config": SIGHT
        | {"patch_size": 4, "pooling_kernel_size": 2, "head_dim": 8, "num_key_value_heads": 2}
        | {"position_embedding_size": 8},
        "audio_config": None,
        "image_token_id": IMAGE,
        "video_token_id": IMAGE + 1,
        "audio_token_id": IMAGE + 2,
        "boi_token_id": 3,
        "eoi_token_id": 4,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": SIGHT | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": IMAGE,
        "spatial_merge_size": 1,
    },
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SIGHT | {"model_type": "clip_vision_model"},
        "image_token_index": IMAGE,
    },
    "llama4": MARKS
    | {
        "text_config": TEXT | tiny.SPECIAL["llama4_text"] | {"model_type": "llama4_text"},
        "vision_config": SIGHT
        | {
            "intermediate_size": 64,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "pixel_shuffle_ratio": 0.5,
        },
    },
    "qwen2_5_vl": QWEN_TOKENS
    | {
        "text_config": TEXT | QWEN_ROPE | {"model_type": "qwen2_5_vl_text"},
        "vision_config": QWEN_SIGHT | {"window_size": 16, "fullatt_block_indexes": [1]},
    },
    "qwen3_vl": QWEN_TOKENS
    | {
        "text_config": TEXT | QWEN_ROPE | {"model_type": "qwen3_vl_text"},
        "vision_config": QWEN_SIGHT | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5": QWEN_TOKENS
    | {
        "text_config": TEXT | tiny.DELTA_NET | {"model_type": "qwen3_5_text"},
        "vision_config": QWEN_SIGHT | {"num_position_embeddings": 16},
    },
}


def model(name: str) -> PreTrainedModel:
    """A random model, float32, in eval mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SETTINGS[name])
    made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, buffer in made.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.fill_(0.8)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return made


def save(name: str, folder: Path) -> Path:
    """Writes such a model with a tokenizer."""
    folder.mkdir(parents=True)
    hf.write_directory(model(name), tiny.tokenizer(), folder)
    return folder


def image_and_text(name: str) -> dict[str, torch.Tensor]:
    """What a processor would make of one image with some words about it."""
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    if name.startswith("qwen"):
        # Sixteen patches of 2 x 3 x 4 x 4 numbers, four of which become one token.
        patches = torch.rand(16, 96, generator=torch.Generator().manual_seed(1))
        ids = torch.tensor([[5, 6, IMAGE + 2, *([IMAGE] * 4), 7, 8, 9]])
        return {
            "input_ids": ids,
            "pixel_values": patches,
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (ids == IMAGE).long(),
        }
    if name == "gemma4":
        # Sixteen patches of 3 x 4 x 4 numbers, four of which become one token.
        ids = torch.tensor([[5, 6, *([IMAGE] * 4), 7, 8, 9]])
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1)[None]
        patches = torch.rand(1, 16, 48, generator=torch.Generator().manual_seed(1))
        kinds = (ids == IMAGE).long()
        return {"input_ids": ids, "pixel_values": patches, "image_position_ids": places, "mm_token_type_ids": kinds}
    num_tokens = {"llama4": 1}.get(name, 4)
    ids = torch.tensor([[5, 6, *([IMAGE] * num_tokens), 7, 8, 9]])
    given = {"input_ids": ids, "pixel_values": pixels}
    if name == "mistral3":
        given["image_sizes"] = torch.tensor([[16, 16]])
    if name == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).long()
    return given
