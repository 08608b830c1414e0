"""Small configurations of every family, with per-layer settings that a wrong cut would show."""

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


def _layer_types(others: str = "sliding_attention", full: str = "full_attention") -> list[str]:
    return [full if is_full else others for is_full in FULL]


SLIDING: dict[str, Any] = {"layer_types": _layer_types(), "sliding_window": 4}
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
    "layer_types": _layer_types("linear_attention"),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
LFM2: dict[str, Any] = {"layer_types": _layer_types("conv"), "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
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
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "vaultgemma": SLIDING,
    "olmo3": SLIDING,
    "ministral": SLIDING,
    "cwm": SLIDING,
    "cohere2": SLIDING,
    "exaone4": SLIDING,
    "granite_swa": SLIDING | {"residual_multiplier": 0.5},
    "gpt_oss": SLIDING | EXPERTS,
    "afmoe": SLIDING | EXPERTS | {"num_dense_layers": 4},
    "mixtral": EXPERTS,
    "phimoe": EXPERTS,
    "olmoe": EXPERTS,
    "flex_olmo": EXPERTS,
    "minimax_m2": EXPERTS,
    "granitemoe": EXPERTS | {"residual_multiplier": 0.5},
    "granitemoeshared": EXPERTS | {"residual_multiplier": 0.5},
    "jetmoe": EXPERTS | {"kv_channels": 8},
    "dots1": LEADING_DENSE | SLIDING,
    "glm4_moe": LEADING_DENSE,
    "deepseek_v2": LEADING_DENSE | LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LEADING_DENSE | LATENT | {"num_nextn_predict_layers": 1},
    "youtu": LATENT,
    "qwen2_moe": SOME_DENSE | SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": SOME_DENSE,
    "llama4_text": EXPERTS
    | {
        "no_rope_layers": [1, 0, 1, 1, 0, 1],
        "moe_layers": [0, 3, 5],
        "layer_types": _layer_types("chunked_attention"),
        "attention_chunk_size": 4,
        "intermediate_size_mlp": 40,
    },
    "qwen2": SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1, 0, 1]},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
    "hyperclovax": {"residual_multiplier": 0.5, "use_post_norm": True},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},
    "codegen": GPT2 | {"rotary_dim": 4},
    "gpt_neo": {
        "num_layers": NUM_BLOCKS,
        "attention_types": [[[kind], 1] for kind in _layer_types("local", "global")],
        "window_size": 4,
    },
    "bloom": {"n_layer": NUM_BLOCKS, "n_head": 4},
    "mpt": NO_GROUPS | {"d_model": 32, "n_layers": NUM_BLOCKS, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64},
    "falcon": FALCON,
    "opt": OPT,
    "xglm": OPT | {"num_layers": NUM_BLOCKS},
    "mamba": STATE_SPACE,
    "falcon_mamba": STATE_SPACE,
    "mamba2": STATE_SPACE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "jamba": MAMBA
    | EXPERTS
    | {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "bamba": MAMBA | {"attn_layer_indices": [1, 4]},
    "granitemoehybrid": MAMBA | EXPERTS | {"layer_types": _layer_types("linear_attention"), "residual_multiplier": 0.5},
    "nemotron_h": MAMBA
    | EXPERTS
    | {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention", "moe", "full_attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    "lfm2": LFM2,
    "lfm2_moe": LFM2 | EXPERTS | {"num_dense_layers": 4},
    "qwen3_next": DELTA_NET | SOME_DENSE,
    "qwen3_5_text": DELTA_NET,
}

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
        "layer_types": _layer_types("linear_attention"),
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
SPECIAL |= {
    "aria_text": EXPERTS | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": LEADING_DENSE | LATENT | {"q_lora_rank": 16},
    # Where a few of equal scores are chosen, which ones depends on how many are looked at together.
    "axk2": SPARSE_AT_ODD_PLACES | LATENT | INDEXED | {"gated_norm_rank": 4, "index_topk": 64},
    "bailing_hybrid": LATENT_HYBRID | {"first_k_dense_replace": 2},
    "bert": BERT,
    "bert-generation": BERT,
    "big_bird": BERT | {"attention_type": "original_full"},
    "camembert": BERT | {"pad_token_id": 0},
    "cohere2_moe": SLIDING | SPARSE_AT_ODD_PLACES,
    "cohere_compass_text": SLIDING | {"rope_parameters": TWO_ROPES},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"n_layer": NUM_BLOCKS, "n_embd": 32, "n_head": 4, "dff": 48, "n_positions": 64},
    "data2vec-text": BERT,
    "dbrx": {
        "d_model": 32,
        "n_layers": NUM_BLOCKS,
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16},
    },
    "deepseek_v32": LEADING_DENSE | LATENT | INDEXED,
    "deepseek_v4": EXPERTS
    | {
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"] * 3,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": ["hash_moe", "moe", "moe", "hash_moe", "moe", "moe"],
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 16,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "sliding_window": 4,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "num_nextn_predict_layers": 0,
        "partial_rotary_factor": 0.5,
    },
    "electra": BERT,
    "ernie": BERT,
    "dots3_note_text": SPARSE_AT_ODD_PLACES
    | LATENT
    | INDEXED
    | {
        "layer_types": _layer_types("indexed_attention", "sliding_attention"),
        "sliding_window": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "per_layer_config": {str(layer): {"kv_lora_rank": 24} for layer in (1, 4)},
        "shared_experts_intermediate_size": 16,
    },
    "ernie4_5_moe": EXPERTS
    | {
        "moe_layer_start_index": 2,
        "moe_layer_end_index": 4,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "exaone_moe": SLIDING | SPARSE_AT_ODD_PLACES,
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "flint": SLIDING,
    "gemma3n_text": SHARING
    | {
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "intermediate_size": [48, 40, 48, 48, 40, 48],
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0, 0.0, 0.5],
    },
    "gemma4_text": SHARING,
    "gemma4_unified_text": SHARING | {"num_kv_shared_layers": 0},
    "glm4_moe_lite": SPARSE_AT_ODD_PLACES | LATENT | {"q_lora_rank": 16},
    "glm_moe_dsa": LEADING_DENSE | LATENT | INDEXED | {"indexer_types": ["full", "shared"] * 3},
    "gpt-sw3": GPT2,
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "granitemoe_swa": SLIDING | EXPERTS | {"layer_rope_theta": [1e4, 2e4, 1e4, 3e4, 1e4, 4e4]},
    "hunyuan_v1_moe": EXPERTS | {"moe_topk": 2, "num_shared_expert": 1},
    "hy_v3": SPARSE_AT_ODD_PLACES,
    "hy_v4": SPARSE_AT_ODD_PLACES
    | LATENT
    | INDEXED
    | {"indexer_types": ["full", "shared", "full", "shared", "shared", "full"], "hc_mult": 2, "index_topk": 64},
    "inkling_text": EXPERTS | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "kimi_linear": LATENT_HYBRID,
    "kolibri1": SPARSE_AT_ODD_PLACES,
    "laguna": SPARSE_AT_ODD_PLACES | SLIDING,
    "lfm3": LFM2
    | {
        "layer_types": ["conv", *["full_attention"] * 2, *["sliding_attention"] * 2, "conv"],
        "sliding_window": 4,
        "rope_parameters": TWO_ROPES,
    },
    "longcat_flash": LATENT
    | EXPERTS
    | {
        "num_layers": NUM_BLOCKS,
        "q_lora_rank": 16,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "megatron-bert": BERT,
    "mellum": SPARSE_AT_ODD_PLACES | SLIDING,
    "mimo_v2_flash": SPARSE_AT_ODD_PLACES | SLIDING,
    "minicpm3": LATENT | {"q_lora_rank": 16, "scale_depth": 1.4},
    "minimax": EXPERTS | {"layer_types": _layer_types("linear_attention"), "block_size": 4},
    "minimax_m3_vl_text": SPARSE_AT_ODD_PLACES | {"dense_intermediate_size": 48, "index_block_size": 4},
    "modernbert-decoder": SLIDING | {"local_attention": 8},
    "moshi": {"ffn_dim": 48, "num_key_value_heads": 4},
    "olmo_hybrid": DELTA_NET,
    "openai-gpt": GPT2,
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
            *("plbart", "trocr", "whisper"),
        ),
        DECODER,
    ),
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
        },
    },
    "git": BERT
    | {"vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
    "qwen4_exp_text": DELTA_NET
    | EXPERTS
    | {
        "layer_types": _layer_types("linear_attention", "indexed_attention"),
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "qwen3_5_moe_text": DELTA_NET | EXPERTS,
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention", "recurrent", "recurrent"],
        "lru_width": 32,
        "attention_window_size": 4,
    },
    "rembert": BERT | {"input_embedding_size": 16, "output_embedding_size": 32},
    "roberta": BERT,
    "roberta-prelayernorm": BERT,
    "roc_bert": BERT
    | {
        "enable_pronunciation": False,
        "enable_shape": False,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
    },
    "roformer": BERT,
    "rwkv": {"rescale_every": 0, "attention_hidden_size": 32, "context_length": 64},
    "solar_open": SPARSE_AT_ODD_PLACES,
    "xlm-roberta": BERT,
    "xlm-roberta-xl": BERT,
    "xlstm": {"num_blocks": NUM_BLOCKS, "hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "qk_dim_factor": 1.0},
    "xmod": BERT | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": EXPERTS
    | {
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "router_hidden_size": 16,
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid", "hybrid_sliding", "hybrid"],
        "sliding_window": 4,
    },
}

# Settings that a configuration does not take, since it has them from others.
FOREIGN = {
    "falcon": {"head_dim"},
    "longcat_flash": {"num_hidden_layers"},
}
