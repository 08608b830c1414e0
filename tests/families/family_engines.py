"""Which engines run a family's ordinary checkpoint, as they say themselves: blocks and pairs leave one when they go."""

from depthcut.export.llama_cpp import LITE, RHYTHMS, SCALED_BY_WIDTH, WITHOUT_ROTATION
from depthcut.model.whole_families import WHOLE_FAMILIES

NOT_LOOKED_UP = frozenset(WHOLE_FAMILIES) | {
    "aria_text",
    "axk1",
    "axk2",
    "bitnet",
    "cohere2_moe",
    "cohere_compass_text",
    "deepseek_v32",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flint",
    "glm4_moe_lite",
    "gpt-sw3",
    "hunyuan_v1_moe",
    "hy_v3",
    "iquestcoder",
    "kolibri1",
    "laguna",
    "lfm3",
    "mellum",
    "mimo_v2_flash",
    "minicpm3",
    "minimax_m3_vl_text",
    "phi4_multimodal",
    "qwen3_5_moe_text",
    "solar_open",
}
"""Model types of which nobody has looked up whether the engines know them."""

VLLM = frozenset(
    {
        "afmoe",
        "apertus",
        "bloom",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "exaone4",
        "falcon",
        "falcon_mamba",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_oss",
        "gptj",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoehybrid",
        "granitemoeshared",
        "hyperclovax",
        "internlm3",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "llama",
        "llama4_text",
        "mamba",
        "mamba2",
        "minimax_m2",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "nemotron_h",
        "olmoe",
        "opt",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "stablelm",
    }
)
"""Model types that vLLM 0.32 has code of its own for (`vllm.model_executor.models.registry`)."""

LLAMA_CPP = {
    "afmoe": "afmoe",
    "apertus": "apertus",
    "arcee": "arcee",
    "bloom": "bloom",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "dots1": "dots1",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon": "falcon",
    "falcon_mamba": "mamba",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "glm4": "glm4",
    "glm4_moe": "glm4moe",
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "gptj": "gptj",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitehybrid",
    "granitemoeshared": "granitemoe",
    "hunyuan_v1_dense": "hunyuan-dense",
    "jais2": "jais2",
    "jamba": "jamba",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2moe",
    "llama": "llama",
    "llama4_text": "llama4",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "nemotron_h": "nemotron_h",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi2",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""Model types by the architecture that llama.cpp runs them as (names of the package gguf)."""

ORDINALS = {2: "second", 4: "fourth", 6: "sixth"}


def conditions(model_type: str) -> str:
    """What a removal must not change if llama.cpp is to read the rest of a model of the type rightly; may be empty."""
    found = []
    if model_type in RHYTHMS:
        found.append(f"every {ORDINALS[RHYTHMS[model_type]]} block has to be the one with full attention")
    if model_type in WITHOUT_ROTATION:
        found.append(f"every {ORDINALS[WITHOUT_ROTATION[model_type]]} block has to be the one that does not rotate")
    if model_type in SCALED_BY_WIDTH:
        found.append(f"the 27B model is known by its {SCALED_BY_WIDTH[model_type]} blocks and cannot be made shorter")
    if model_type in LITE:
        counts = " or ".join(map(str, LITE[model_type]))
        found.append(f"models without low-rank queries are known by {counts} blocks, which others must not have")
    return "; ".join(found)
