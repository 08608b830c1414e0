"""What the small configurations of the families are made of."""

from __future__ import annotations

from typing import Any

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
# Full attention, experts and other mixers stand at positions that no regular pattern would give.
FULL = [False, True, False, False, True, False]


def layer_types_at(others: str = "sliding_attention", full: str = "full_attention") -> list[str]:
    return [full if is_full else others for is_full in FULL]


SLIDING: dict[str, Any] = {"layer_types": layer_types_at(), "sliding_window": 4}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "n_shared_experts": 1,
}
LEADING_DENSE = EXPERTS | {"first_k_dense_replace": 4, "n_group": 1, "topk_group": 1}
SOME_DENSE = EXPERTS | {"decoder_sparse_step": 2, "mlp_only_layers": [1]}
LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
MAMBA: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_dt_rank": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
DELTA_NET: dict[str, Any] = {
    "layer_types": layer_types_at("linear_attention"),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
LFM2: dict[str, Any] = {"layer_types": layer_types_at("conv"), "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
STATE_SPACE: dict[str, Any] = {"state_size": 8, "conv_kernel": 3, "time_step_rank": 4}
NO_GROUPS: dict[str, Any] = {"num_key_value_heads": 4}
GPT2: dict[str, Any] = NO_GROUPS | {
    "n_embd": 32,
    "n_layer": NUM_BLOCKS,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 64,
}
FALCON: dict[str, Any] = {"bias": True, "alibi": False, "ffn_hidden_size": 48}
OPT: dict[str, Any] = {"ffn_dim": 48, "word_embed_proj_dim": 32, "d_model": 32, "attention_heads": 4}
INDEXED: dict[str, Any] = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2, "q_lora_rank": 16}
SPARSE_AT_ODD_PLACES = EXPERTS | {
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse", "dense"],
    "n_group": 1,
    "topk_group": 1,
}
LATENT_HYBRID: dict[str, Any] = (
    LATENT
    | SPARSE_AT_ODD_PLACES
    | {
        "layer_types": layer_types_at("linear_attention"),
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_shared_experts": 1,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
    }
)
TWO_ROPES = {
    kind: {"rope_type": "default", "rope_theta": theta}
    for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
}
DECODER: dict[str, Any] = {
    "d_model": 32,
    "decoder_layers": NUM_BLOCKS,
    "num_decoder_layers": NUM_BLOCKS,
    "decoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "max_target_positions": 64,
}
BERT: dict[str, Any] = {"is_decoder": True, "embedding_size": 32, "pad_token_id": 0}
# Later blocks read what the last two before them keep: they stay.
SHARING: dict[str, Any] = {
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "sliding", "full")],
    "sliding_window": 4,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "global_head_dim": 16,
}
