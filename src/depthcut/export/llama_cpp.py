"""Properties that llama.cpp derives from a model's type and number of blocks; a removal can make it derive wrong ones.

Its converter writes no list of which attentions slide, rotate or are linear for these types: the loader of each has a
rhythm of its own. And it tells some models apart by how many blocks they have. Source: llama.cpp, `src/models/`, the
`load_arch_hparams` of each architecture.
"""

from __future__ import annotations

import math

from transformers import PreTrainedConfig

from depthcut.model.wrappers import decoder_config

RHYTHMS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2} | dict.fromkeys(
    ("afmoe", "cohere2", "exaone4", "llama4_text", "olmo3", "qwen3_5_text", "qwen3_next"), 4
)
"""Types in which llama.cpp takes every so many-th block, and no other, for one with full attention."""

WITHOUT_ROTATION = {"llama4_text": 4, "smollm3": 4}
"""Types in which llama.cpp takes every so many-th block, and no other, for one whose attention does not rotate."""

SCALED_BY_WIDTH = {"gemma2": 46, "gemma3_text": 62}
"""Block counts by which llama.cpp knows the 27B models, whose attentions are scaled by width, not by head."""

LITE = {"deepseek_v2": (26, 27), "deepseek_v3": (26, 27)}
"""Block counts by which llama.cpp knows models whose queries are not of low rank."""


def misread(config: PreTrainedConfig) -> str | None:
    """A clause on what llama.cpp would read wrongly of a model; None where it reads all rightly.

    Args:
        config: of the model as it is written.
    """
    config = decoder_config(config)
    model_type, num_blocks = str(config.model_type), int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    period = RHYTHMS.get(model_type)
    if kinds and period and not _beats([kind == "full_attention" for kind in kinds], period):
        return f"it takes every {_ordinal(period)} block of {model_type} for one with full attention"
    rotates = getattr(config, "no_rope_layers", None)
    period = WITHOUT_ROTATION.get(model_type)
    if rotates and period and not _beats([not flag for flag in rotates], period):
        return f"it takes every {_ordinal(period)} block of {model_type} for one that does not rotate"
    if model_type in SCALED_BY_WIDTH:
        by_width = num_blocks == SCALED_BY_WIDTH[model_type]
        scale = config.hidden_size / config.num_attention_heads if by_width else config.head_dim
        if not math.isclose(config.query_pre_attn_scalar, scale):
            return (
                f"it scales attention by {scale:g} at {num_blocks} blocks, not by {config.query_pre_attn_scalar:g} "
                f"({SCALED_BY_WIDTH[model_type]} blocks are the 27B model to it)"
            )
    if model_type in LITE and (num_blocks in LITE[model_type]) != (config.q_lora_rank is None):
        counts = " or ".join(map(str, LITE[model_type]))
        return f"it takes {counts} blocks, and no other count, for a model without low-rank queries"
    return None


def _beats(marked: list[bool], period: int) -> bool:
    """Whether exactly the last of every `period` entries is marked."""
    return marked == [index % period == period - 1 for index in range(len(marked))]


def _ordinal(number: int) -> str:
    return {2: "second", 4: "fourth", 6: "sixth"}[number]
