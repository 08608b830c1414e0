"""The families of decoders: where their blocks are and which modules make up each residual branch.

A new family is one row in `FAMILIES`. Types without a row are examined by `probe.py`; those that are known not to fit
stand in `REFUSED`, with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from depthcut.model.branches import Architecture, Branch, alike
from depthcut.model.heads import head_of
from depthcut.model.whole_families import WHOLE_FAMILIES, WHOLE_VARIANTS
from depthcut.model.wrappers import LIKE, blocks_of_wrapper, decoder_config, is_wrapper
from depthcut.types import InputError, UnitKind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


PRUNED_PREFIX = "depthcut_"
"""Begins the model type of checkpoints whose blocks lack sublayers."""

ATTENTION = Branch("self_attn", "self_attn.o_proj", ("input_layernorm",), num_outputs=2)
FFN = Branch("mlp", "mlp.down_proj", ("post_attention_layernorm",))
PRE_NORM = Architecture({"attn": ATTENTION, "ffn": FFN})
SANDWICH_NORM = Architecture(
    {
        "attn": replace(ATTENTION, norms_after=("post_attention_layernorm",)),
        "ffn": replace(FFN, norms_before=("pre_feedforward_layernorm",), norms_after=("post_feedforward_layernorm",)),
    }
)
POST_NORM = Architecture(
    {
        "attn": replace(ATTENTION, norms_before=(), norms_after=("post_attention_layernorm",)),
        "ffn": replace(FFN, norms_before=(), norms_after=("post_feedforward_layernorm",)),
    }
)


def _pre_norm(attention: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **block: Any) -> Architecture:
    """Norm, core, addition, twice; with what differs from Llama."""
    branches: dict[UnitKind, Branch] = {
        "attn": replace(ATTENTION, **attention or {}),
        "ffn": replace(FFN, **ffn or {}),
    }
    return replace(PRE_NORM, branches=branches, **block)


def _one_norm(
    norm: str, attention: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **block: Any
) -> Architecture:
    """Parallel branches that read the same norm."""
    shared = {"norms_before": (), "shared_norms": (norm,)}
    return _pre_norm(shared | (attention or {}), shared | (ffn or {}), parallel=True, **block)


def _hybrid(mixer: Branch, ffn: dict[str, Any] | None = None, **block: Any) -> Architecture:
    """Blocks with attention and blocks with another mixer, which begin with the same norm."""
    attention = replace(ATTENTION, norms_before=mixer.norms_before, alternative=mixer)
    return Architecture({"mixer": attention, "ffn": replace(FFN, **ffn or {})}, **block)


def _with_norm_after(branch: Branch, norm: str) -> Branch:
    """A branch with a norm after its core, in every form."""
    alternative = branch.alternative and _with_norm_after(branch.alternative, norm)
    return replace(branch, norms_after=(norm,), alternative=alternative)


_GPT2_ATTENTION = {"core": "attn", "projection": "attn.c_proj", "norms_before": ("ln_1",)}
_GPT2_FFN = {"projection": "mlp.c_proj", "norms_before": ("ln_2",)}
_GPT2 = _pre_norm(_GPT2_ATTENTION, _GPT2_FFN, blocks="transformer.h")
_GPT_J = _one_norm(
    "ln_1",
    {"core": "attn", "projection": "attn.out_proj"},
    {"projection": "mlp.fc_out"},
    blocks="transformer.h",
    block_outputs=2,
)
_NEOX_FFN = {"projection": "mlp.dense_4h_to_h"}
# Their feed-forward part is no module of its own: two maps and an activation stand in the block.
_OPT = _pre_norm(
    {"projection": "self_attn.out_proj", "norms_before": ("self_attn_layer_norm",)},
    {
        "core": "fc2",
        "projection": "fc2",
        "norms_before": ("final_layer_norm",),
        "leading": ("fc1", "activation_fn"),
    },
)
# Their blocks read the norm's dtype, so it stays, as it does where branches share it.
_STATE_SPACE = Architecture(
    {"mixer": Branch("mixer", "mixer.out_proj", shared_norms=("norm",))}, blocks="backbone.layers"
)
_NEMOTRON_H_FFN = Branch("mixer", "mixer.down_proj", shared_norms=("norm",), settings={"block_type": "mlp"})
_NEMOTRON_H_ATTENTION = replace(_NEMOTRON_H_FFN, projection="mixer.o_proj", alternative=_NEMOTRON_H_FFN)
_MAMBA_BRANCH = Branch("mamba", "mamba.out_proj", ("input_layernorm",))
_JAMBA_FFN = {"core": "feed_forward", "projection": "feed_forward.down_proj", "norms_before": ("pre_ff_layernorm",)}
_DELTA_NET = _hybrid(Branch("linear_attn", "linear_attn.out_proj", ("input_layernorm",)))
_LFM2 = Architecture(
    {
        "mixer": Branch(
            "self_attn",
            "self_attn.out_proj",
            ("operator_norm",),
            num_outputs=2,
            alternative=Branch("conv", "conv.out_proj", ("operator_norm",)),
        ),
        "ffn": Branch("feed_forward", "feed_forward.w2", ("ffn_norm",)),
    }
)


FAMILIES: dict[str, Architecture] = {
    **alike(
        "arcee aria_text axk1 axk2 bitnet cwm deepseek_v2 deepseek_v3 deepseek_v32 dots1 dots3_note_text ernie4_5 "
        "ernie4_5_moe exaone_moe flint gemma glm glm4_moe glm4_moe_lite granite granite_swa helium "
        "hunyuan_v1_dense hunyuan_v1_moe hy_v3 internlm3 iquestcoder jais2 laguna llama mellum mimo_v2_flash "
        "minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral nemotron olmo olmoe phi3 "
        "phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm youtu",
        PRE_NORM,
    ),
    **alike("gemma2 gemma3_text", SANDWICH_NORM),
    **alike("olmo2 olmo3 exaone4 flex_olmo", POST_NORM),
    **alike("cohere cohere2 cohere_compass_text cohere2_moe", _one_norm("input_layernorm")),
    **alike("gpt2 gpt_bigcode gpt-sw3", _GPT2),
    **alike("gptj codegen", _GPT_J),
    **alike("mamba mamba2 falcon_mamba", _STATE_SPACE),
    **alike("lfm2 lfm2_moe", _LFM2),
    **alike("qwen3_next qwen3_5_text qwen3_5_moe_text", _DELTA_NET),
    **alike(
        "glm4 kolibri1",
        _pre_norm({"norms_after": ("post_self_attn_layernorm",)}, {"norms_after": ("post_mlp_layernorm",)}),
    ),
    "vaultgemma": _pre_norm(ffn={"norms_before": ("pre_feedforward_layernorm",)}),
    "phi": _one_norm("input_layernorm", {"projection": "self_attn.dense"}, {"projection": "mlp.fc2"}),
    "starcoder2": _pre_norm(ffn={"projection": "mlp.c_proj"}),
    "hyperclovax": _pre_norm({"norms_after": ("post_norm1",)}, {"norms_after": ("post_norm2",)}),
    "nanochat": _pre_norm(ffn={"projection": "mlp.fc2"}),
    "persimmon": _pre_norm({"projection": "self_attn.dense"}, _NEOX_FFN),
    "apertus": _pre_norm({"norms_before": ("attention_layernorm",)}, {"norms_before": ("feedforward_layernorm",)}),
    "gpt_neo": _pre_norm(
        _GPT2_ATTENTION | {"projection": "attn.attention.out_proj"}, _GPT2_FFN, blocks="transformer.h", block_outputs=2
    ),
    "gpt_neox": _pre_norm(
        {"core": "attention", "projection": "attention.dense"}, _NEOX_FFN, blocks="gpt_neox.layers", parallel=True
    ),
    "opt": replace(_OPT, blocks="model.decoder.layers"),
    "xglm": _OPT,
    "biogpt": replace(_OPT, blocks="biogpt.layers"),
    "bloom": _pre_norm(
        {"core": "self_attention", "projection": "self_attention.dense", "adds_residual": True},
        _NEOX_FFN | {"adds_residual": True},
        blocks="transformer.h",
        block_outputs=2,
    ),
    "mpt": _pre_norm(
        {"core": "attn", "projection": "attn.out_proj", "norms_before": ("norm_1",)},
        {"core": "ffn", "projection": "ffn.down_proj", "norms_before": ("norm_2",), "adds_residual": True},
        blocks="transformer.blocks",
        block_outputs=2,
    ),
    "falcon": _one_norm(
        "input_layernorm",
        {"core": "self_attention", "projection": "self_attention.dense"},
        _NEOX_FFN,
        blocks="transformer.h",
        block_outputs=2,
    ),
    "afmoe": Architecture(
        {
            "attn": replace(ATTENTION, norms_after=("post_attention_layernorm",)),
            "ffn": replace(FFN, norms_before=("pre_mlp_layernorm",), norms_after=("post_mlp_layernorm",)),
        }
    ),
    "granitemoe": _pre_norm(ffn={"core": "block_sparse_moe", "projection": ""}),
    "granitemoeshared": _pre_norm(ffn={"core": "block_sparse_moe", "projection": "", "beside": ("shared_mlp",)}),
    "jetmoe": _pre_norm({"core": "self_attention", "projection": "", "num_outputs": 3}),
    "gpt_oss": _pre_norm(ffn={"num_outputs": 2}),
    "llama4_text": _pre_norm(
        ffn={
            "core": "feed_forward",
            "projection": "feed_forward.down_proj",
            # Blocks with experts expect two values of their feed-forward part, the others one.
            "settings": {"is_moe_layer": False},
        }
    ),
    "nemotron_h": Architecture(
        {"mixer": replace(_NEMOTRON_H_FFN, projection="mixer.out_proj", alternative=_NEMOTRON_H_ATTENTION)}
    ),
    "jamba": _hybrid(_MAMBA_BRANCH, _JAMBA_FFN),
    "bamba": _hybrid(_MAMBA_BRANCH, _JAMBA_FFN, block_outputs=2),
    "granitemoehybrid": _hybrid(
        _MAMBA_BRANCH,
        {"core": "shared_mlp", "projection": "shared_mlp.output_linear", "beside": ("block_sparse_moe",)},
    ),
    "lfm3": replace(
        _LFM2,
        branches={
            kind: _with_norm_after(branch, f"post_{branch.norms_before[0]}") for kind, branch in _LFM2.branches.items()
        },
    ),
    **WHOLE_FAMILIES,
}


def _bloom(config: PreTrainedConfig) -> Architecture:
    if config.apply_residual_connection_post_layernorm:
        raise _refusal("bloom", "its blocks add to the normed stream, so that nothing passes through them unchanged")
    return FAMILIES["bloom"]


def _falcon(config: PreTrainedConfig) -> Architecture:
    family = FAMILIES["falcon"]
    attention, ffn = family.branches["attn"], family.branches["ffn"]
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        norms = (("ln_attn",), ("ln_mlp",))
    elif not (config.parallel_attn or config.new_decoder_architecture):
        norms = (("input_layernorm",), ("post_attention_layernorm",))
    else:
        return family
    return replace(
        family,
        branches={
            "attn": replace(attention, norms_before=norms[0], shared_norms=()),
            "ffn": replace(ffn, norms_before=norms[1], shared_norms=()),
        },
        parallel=bool(config.parallel_attn or config.new_decoder_architecture),
    )


def _opt(config: PreTrainedConfig) -> Architecture:
    family = FAMILIES["opt"]
    if config.do_layer_norm_before:
        return family
    # The norm is over the sum of stream and branch. It goes with the branch, but what passes it is not linear in what
    # the projection writes.
    branches = {
        kind: replace(branch, projection="", norms_before=(), norms_after=branch.norms_before)
        for kind, branch in family.branches.items()
    }
    return replace(family, branches=branches)


VARIANTS: dict[str, Callable[[PreTrainedConfig], Architecture]] = {
    "bloom": _bloom,
    "falcon": _falcon,
    "gpt_neox": lambda config: replace(FAMILIES["gpt_neox"], parallel=bool(config.use_parallel_residual)),
    "opt": _opt,
    "stablelm": lambda config: _one_norm("input_layernorm") if config.use_parallel_residual else PRE_NORM,
    **WHOLE_VARIANTS,
}
"""Families whose configuration chooses between forms of a block."""

REFUSED: dict[str, str] = {
    "beam": "its blocks are scaled by their index, which changes when blocks leave",
    "blt": "it groups bytes into patches with models of their own, whose blocks differ",
    "diffllama": "its attentions compute with the index of their block, which changes when blocks leave",
    "gemma4_assistant": "it reads the keys and values of another model",
    "gemma4_unified_assistant": "it reads the keys and values of another model",
    "hrm_text": "it runs its blocks several times over in one pass",
    "inkling2_text": "its blocks read what those at set places gave, by their index",
    "mllama": "some of its blocks read images alone",
    "moshi": "its configuration does not read back as it was written",
    "musicgen": "it has an encoder beside the decoder, and predicts codes of sound",
    "musicgen_melody": "it has an encoder beside the decoder, and predicts codes of sound",
    "prophetnet": "its blocks predict several tokens ahead in streams of their own, which a cache decodes otherwise",
    "reformer": "its blocks reverse two streams, which attend by chance",
    "xlm": "its blocks are lists of parts, not modules of their own",
    "xlnet": "it predicts tokens in any order, and not the next one",
    "zamba": "its blocks share one attention, so taking one out changes others",
    "zamba2": "its blocks share attentions, so taking one out changes others",
}
"""Types whose blocks are not residual branches on one stream, and why."""


def family_type(config: PreTrainedConfig) -> str:
    """The stock model type of a decoder's configuration, also where its blocks lack sublayers."""
    model_type = str(decoder_config(config).model_type).removeprefix(PRUNED_PREFIX)
    return LIKE.get(model_type, model_type)


def find_architecture(config: PreTrainedConfig) -> Architecture:
    """The row for a model's configuration; needs no weights. Of a model that carries its decoder inside, the decoder's.

    Raises:
        InputError: the family has no row.
    """
    if config.model_type in REFUSED:
        raise _refusal(config.model_type, REFUSED[config.model_type])
    if is_wrapper(config):
        return replace(find_architecture(decoder_config(config)), blocks=blocks_of_wrapper(config))
    model_type = family_type(config)
    if model_type in REFUSED:
        raise _refusal(model_type, REFUSED[model_type])
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=3, cutoff=0.5) or sorted(FAMILIES)
        raise InputError(
            f"models of type {model_type!r} are not supported; the nearest families that are: {', '.join(near)}"
        )
    found = VARIANTS[model_type](config) if model_type in VARIANTS else FAMILIES[model_type]
    # A model without a head is what stands inside of those with one.
    return replace(found, blocks=found.blocks.partition(".")[2]) if head_of(config) == "embedding" else found


def _refusal(model_type: str, reason: str) -> InputError:
    return InputError(f"models of type {model_type!r} cannot be pruned: {reason}; give another model")
