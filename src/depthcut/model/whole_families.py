"""Families of which only whole blocks can be removed: where the blocks are, what they return, what depends on them.

The inside of such a block does not matter: branches that add to normed or scaled hidden states, several attentions, or
several streams at once. `WHOLE_VARIANTS` has what depends on the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from depthcut.model.branches import WHOLE, Architecture, alike

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _whole(blocks: str = "model.layers", outputs: int = 1, **settings: Any) -> Architecture:
    return Architecture({"block": WHOLE}, blocks=blocks, block_outputs=outputs, **settings)


PER_LAYER_EMBEDDINGS = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}

WHOLE_FAMILIES: dict[str, Architecture] = {
    **alike(
        "bailing_hybrid deepseek_v4 doge gemma4_unified_text granitemoe_swa inkling_text kimi_linear minimax "
        "modernbert-decoder olmo_hybrid qwen4_exp_text recurrent_gemma",
        _whole(),
    ),
    **alike("bert bert-generation big_bird", _whole("bert.encoder.layer")),
    **alike("camembert roberta xlm-roberta xlm-roberta-xl xmod", _whole("roberta.encoder.layer")),
    **alike("glm_moe_dsa hy_v4", _whole(outputs=2, carried=("prev_topk_indices",))),
    **alike("mvp trocr", _whole("model.decoder.layers", 2)),
    **alike(
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart pegasus plbart whisper",
        _whole("model.decoder.layers"),
    ),
    "cpmant": _whole("cpmant.encoder.layers", 2),
    "ctrl": _whole("transformer.h"),
    "data2vec-text": _whole("data2vec_text.encoder.layer"),
    "dbrx": _whole("transformer.blocks"),
    "electra": _whole("electra.encoder.layer"),
    "ernie": _whole("ernie.encoder.layer"),
    "falcon_h1": _whole(outputs=2),
    "gemma3n_text": _whole(streams_first=True, tables=PER_LAYER_EMBEDDINGS),
    "gemma4_text": _whole(tables=PER_LAYER_EMBEDDINGS),
    "git": _whole("git.encoder.layer"),
    "gpt_neox_japanese": _whole("gpt_neox_japanese.layers", 2),
    "longcat_flash": _whole(slots=2),
    "megatron-bert": _whole("bert.encoder.layer", 2),
    "openai-gpt": _whole("transformer.h", 2),
    "rembert": _whole("rembert.encoder.layer", 2),
    "roberta-prelayernorm": _whole("roberta_prelayernorm.encoder.layer"),
    "roc_bert": _whole("roc_bert.encoder.layer"),
    "roformer": _whole("roformer.encoder.layer", 2),
    # Halving the stream every few blocks would divide weights by the index of their block; undone, it is no part.
    "rwkv": _whole("rwkv.blocks", 3, carried=("state",), entry="pre_ln", settings={"rescale_every": 0}),
    "xlstm": _whole("backbone.blocks", 2),
    "zaya": _whole(outputs=2, carried=("prev_router_hidden_states",), last_entry=0),
}


def _sharing(config: PreTrainedConfig) -> Architecture:
    """Blocks at the end that read keys and values of earlier ones, which have to stay and to run in the same pass."""
    family = WHOLE_FAMILIES[config.model_type]
    kinds: list[str] = config.layer_types
    staying: dict[int, str] = {}
    if config.model_type != "gemma3n_text":
        staying[len(kinds) - 1] = "the last one has to be one with full attention"
    own = len(kinds) - config.num_kv_shared_layers if getattr(config, "num_kv_shared_layers", 0) else len(kinds)
    sources = {own - 1 - kinds[:own][::-1].index(kind) for kind in set(kinds[own:])}
    staying |= dict.fromkeys(sources, "blocks at the end read its keys and values")
    tables = family.tables if getattr(config, "hidden_size_per_layer_input", 0) else {}
    return replace(family, staying=staying, last_entry=min(sources, default=None), tables=tables)


def _indexed(config: PreTrainedConfig) -> Architecture:
    """Blocks that attend where an earlier one has looked."""
    family = WHOLE_FAMILIES[config.model_type]
    if "shared" not in (config.indexer_types or ()):
        return family
    return replace(family, last_entry=0, staying={0: "blocks after it attend where it has looked"})


def _last_stays(config: PreTrainedConfig) -> Architecture:
    reason = "the last one alone has a bias"
    return replace(WHOLE_FAMILIES[config.model_type], staying={config.num_hidden_layers - 1: reason})


WHOLE_VARIANTS: dict[str, Callable[[PreTrainedConfig], Architecture]] = {
    "gemma3n_text": _sharing,
    "gemma4_text": _sharing,
    "gemma4_unified_text": _sharing,
    "glm_moe_dsa": _indexed,
    "gpt_neox_japanese": _last_stays,
    "hy_v4": _indexed,
}
"""Families whose configuration says more of their blocks."""
