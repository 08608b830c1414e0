"""Random models that llama.cpp knows, with and without all their sublayers."""

import tiny
from depthcut.export import EXPORTS
from depthcut.model.architectures import find_architecture
from depthcut.surgery import apply
from depthcut.types import Unit

# Attention 0, a whole block, an attention alone, the last feed-forward part: all that deci needs stubs for, or not.
SUBLAYERS = ("0.attn", "2.attn", "2.ffn", "3.ffn", "5.ffn")
WHOLE = {"use_sliding_window": False, "layer_types": ["full_attention"] * tiny.NUM_BLOCKS}
REGULAR = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SPECIAL = {
    "qwen2": WHOLE,
    "qwen3": WHOLE,
    "phi3": {"sliding_window": None},
    "gemma2": REGULAR | {"layer_types": ["sliding_attention", "full_attention"] * 3},
    "gemma3_text": REGULAR,
    "mistral": {"sliding_window": None},
}


def make(family="llama", removed=(), **changes):
    settings = {"vocab_size": tiny.BYTE_VOCABULARY} | SPECIAL.get(family, {}) | changes
    dense = tiny.model(family, **settings)
    return apply(dense, find_architecture(dense.config), [Unit.parse(name) for name in removed])


def form(tensor_type=None):
    return EXPORTS.find("gguf").make(tensor_type=tensor_type)
