"""Random models of a few blocks, one of every family, with per-layer settings that a wrong cut would show."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthcut.calibration import Samples
from depthcut.model.architectures import FAMILIES

NUM_BLOCKS = 6
VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Full attention stands at positions that no regular pattern would give.
SLIDING = {
    "layer_types": [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ],
    "sliding_window": 4,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "olmo3": SLIDING,
    "qwen2": SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1, 0, 1]},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
    "gpt2": {"n_embd": 32, "n_layer": NUM_BLOCKS, "n_head": 4, "n_inner": 48, "n_positions": 64},
}


def config(family: str, **changes: Any) -> Any:
    """A small configuration of the family."""
    return AutoConfig.for_model(family, **(SHAPE | SPECIAL.get(family, {}) | changes))


def model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model, float32, in eval mode. Weights are large enough that every unit matters; biases are not zero."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(family, **changes), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif "embed" not in name and "wte" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return made


def samples(num_samples: int = 3, length: int = 12, seed: int = 0) -> Samples:
    """Random token ids without pads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (num_samples, length), generator=generator)
    return Samples.packed(ids, source="random", detail="", seed=seed, digests=frozenset())


ALL = sorted(FAMILIES)
