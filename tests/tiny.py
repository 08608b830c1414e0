"""Random models of a few blocks, one of every family, with per-layer settings that a wrong cut would show."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from depthcut.calibration import Samples
from depthcut.export import hf, reload_check
from depthcut.model.architectures import FAMILIES
from depthcut.model.branches import Architecture
from depthcut.types import Unit

ROUNDING = 64 * torch.finfo(torch.float32).eps
"""What the order of float32 sums may change in a number of the order of one: a log-probability or KL in nats, a cosine,
a logit as a share of the largest. Log-probabilities here are down to -16, so that each is rounded to 8 eps; the sums
over 32 to 97 terms behind them, through six blocks, carry a few roundings of the same size each way."""

NUM_BLOCKS = 6
VOCABULARY = 97
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
BYTE_VOCABULARY = 256 + len(SPECIAL_TOKENS)
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
SHORT_RUN: dict[str, Any] = {
    "remove": "2",
    "calibration_samples": 4,
    "calibration_length": 16,
    "evaluation_samples": 2,
    "evaluation_length": 16,
    "speed": False,
    "device": "cpu",
}
"""A run on little text."""
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


# Settings that a configuration does not take, since it has them from others.
FOREIGN = {"falcon": {"head_dim"}}


def config(family: str, **changes: Any) -> Any:
    """A small configuration of the family."""
    settings = SHAPE | SPECIAL.get(family, {}) | changes
    return AutoConfig.for_model(family, **{k: v for k, v in settings.items() if k not in FOREIGN.get(family, ())})


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
REPRESENTATIVE = [
    "llama",
    "qwen2",
    "phi3",
    "granite",
    "smollm3",
    "gemma3_text",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "phi",
    "falcon",
    "opt",
    "bloom",
    "qwen3_moe",
    "granitemoeshared",
    "llama4_text",
    "mamba2",
    "lfm2",
    "granitemoehybrid",
]
"""One of every structure, for what does not depend on more than that."""


# Forms of a block that a setting of the family chooses, beside the usual one.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, sequential": ("falcon", {"parallel_attn": False, "alibi": True}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt, norm over the sum": ("opt", {"do_layer_norm_before": False}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
}


def short_and_long(cases: Iterable[str], short: Iterable[str]) -> list[Any]:
    """Cases for `parametrize`; those that are not among the short ones are marked `long`."""
    in_short = set(short)
    return [pytest.param(case, marks=() if case in in_short else pytest.mark.long) for case in cases]


CASES: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in ALL} | FORMS
"""Every family and every form of a block, by name."""


def removals(architecture: Architecture) -> dict[str, frozenset[Unit]]:
    """One removal of every sort that the family's blocks have, by name; each leaves what is irregular irregular.

    The first of the kinds that mix tokens goes with `attn`, as what a hybrid's blocks have instead.
    """
    mixing = next(iter(architecture.branches))
    wanted = {
        "block": {(1, kind) for kind in architecture.branches} | {(3, kind) for kind in architecture.branches},
        "pair": {(3, "ffn"), (4, mixing)} if architecture.pairs else set(),
        "attn": {(0, mixing), (3, mixing)} if len(architecture.branches) > 1 else set(),
        "ffn": {(2, "ffn"), (5, "ffn")} if len(architecture.branches) > 1 else set(),
    }
    return {sort: frozenset(Unit(*unit) for unit in units) for sort, units in wanted.items() if units}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte after the three special ones, so that a few lines of text are many samples."""
    alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos)


def save(folder: Path, family: str = "llama", identity: int | None = None, **changes: Any) -> Path:
    """Writes a random model with its tokenizer.

    Args:
        identity: a block whose output projections are zeroed, so that it passes the stream on as it is.
    """
    made = model(family, **({"vocab_size": BYTE_VOCABULARY} | changes))
    if identity is not None:
        architecture = FAMILIES[family]
        block = architecture.block_list(made)[identity]
        with torch.no_grad():
            for branch in architecture.branches.values():
                for parameter in block.get_submodule(branch.projection).parameters():
                    parameter.zero_()
    folder.mkdir(parents=True)
    hf.write_directory(made, tokenizer(), folder)
    return folder


def reload_in_process(monkeypatch: Any) -> None:
    """Lets a written model be reloaded by the same script in this process: a fresh one takes seconds to start."""

    def run(command: list[str], **_: Any) -> CompletedProcess[str]:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                reload_check.main(*command[command.index(str(hf.RELOAD_SCRIPT)) + 1 :])
        except (OSError, RuntimeError, ValueError) as error:
            return CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return CompletedProcess(command, 0, output.getvalue(), "")

    monkeypatch.setattr(hf, "subprocess", SimpleNamespace(run=run))
