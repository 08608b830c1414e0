"""A Hugging Face model as GGUF metadata and tensors.

llama.cpp differs from transformers in names, in the order of rotated rows (`llama` and `deci` pair neighbours where
transformers pairs halves), in Gemma's norms (whose weights it stores with the 1 added), and in where rotary frequencies
are adjusted (a tensor of divisors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType
from gguf.quants import dequantize, quantize
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.export.gguf.layout import (
    DECI,
    DECI_FROM,
    ROTATED,
    Heads,
    deci_arrays,
    deci_stubs,
    rotated_order,
    window_period,
)
from depthcut.gguf.container import GgufFile, Tensor, Value
from depthcut.model.architectures import PRUNED_PREFIX, find_architecture
from depthcut.model.packing import PackedBlock
from depthcut.model.sublayers import MANIFEST, is_marked
from depthcut.types import InputError, Unit

FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
"""The types that are written here, and what a file of them is called."""

QUANTISATION_VERSION = 2

PRE_NORM_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORM_NAMES = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA2_NAMES = PRE_NORM_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA3_NAMES = GEMMA2_NAMES | HEAD_NORM_NAMES
PHI3_NAMES = PRE_NORM_NAMES | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}


@dataclass(frozen=True)
class Family:
    """How llama.cpp names and lays out a family.

    Attributes:
        architecture: its name in a file of whole blocks.
        names: of a block's tensors, by module.
        interleaved: whether that architecture pairs neighbouring rows.
        norm_offset: added to the weights of norms.
        by_width: of those in which attentions slide at a rhythm, the count of blocks at which llama.cpp scales
            attention by the width of the model, not of a head.
    """

    architecture: str
    names: dict[str, str] = field(default_factory=lambda: PRE_NORM_NAMES)
    interleaved: bool = False
    norm_offset: float = 0.0
    by_width: int = 0


GGUF_FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", PRE_NORM_NAMES | HEAD_NORM_NAMES),
    "phi3": Family("phi3", PHI3_NAMES),
    "gemma2": Family("gemma2", GEMMA2_NAMES, norm_offset=1.0, by_width=46),
    "gemma3_text": Family("gemma3", GEMMA3_NAMES, norm_offset=1.0, by_width=62),
}
CONVERTER = "llama.cpp's converter: python convert_hf_to_gguf.py OUT --outfile model.gguf"
GLOBAL_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def find_family(config: PreTrainedConfig) -> Family:
    """The row of the model's family in `GGUF_FAMILIES`.

    Raises:
        InputError: it is not written, or does something that llama.cpp's graph does not.
    """
    model_type = str(config.model_type).removeprefix(PRUNED_PREFIX)
    otherwise = "use the format hf" + ("" if is_marked(config) else f" and {CONVERTER}")
    if model_type not in GGUF_FAMILIES:
        raise InputError(
            f"GGUF is written for {', '.join(GGUF_FAMILIES)}, and this is a {model_type} model; {otherwise}"
        )
    family = GGUF_FAMILIES[model_type]
    if is_marked(config) and family.architecture not in DECI_FROM:
        raise InputError(
            f"llama.cpp runs blocks that lack sublayers only of {', '.join(DECI_FROM)} models, not of {model_type}; "
            "remove blocks or pairs, or use the format hf"
        )
    for there, reason in _obstacles(config, family):
        if there:
            raise InputError(f"llama.cpp's {family.architecture} does not know {reason}; use the format hf")
    if family.by_width:
        window_period(_sliding(config), family.architecture)
    return family


def _obstacles(config: PreTrainedConfig, family: Family) -> Iterator[tuple[bool, str]]:
    """What a configuration may ask for that llama.cpp's graphs do not do."""
    gemma = bool(family.by_width)
    activation = config.hidden_activation if gemma else config.hidden_act
    yield activation != ("gelu_pytorch_tanh" if gemma else "silu"), f"the activation {activation}"
    for rope in _ropes(config).values():
        yield rope["rope_type"] not in ("default", "linear", "llama3"), f"rotary scaling of type {rope['rope_type']}"
        yield rope.get("partial_rotary_factor", 1.0) != 1.0, "rotation of a part of each head"
    if gemma:
        known = math.isclose(config.query_pre_attn_scalar, config.head_dim)
        if config.num_hidden_layers == family.by_width:
            # By this count llama.cpp knows the 27B model.
            known = math.isclose(config.query_pre_attn_scalar, config.hidden_size / config.num_attention_heads)
        yield not known, f"attention scaled by {config.query_pre_attn_scalar} at {config.num_hidden_layers} blocks"
        sliding_rope = _ropes(config).get("sliding_attention", _ropes(config)["full_attention"])
        yield sliding_rope["rope_type"] != "default", "rotary scaling of sliding attention"
        capped = family.architecture == "gemma2"
        caps = {bool(config.final_logit_softcapping), bool(config.attn_logit_softcapping)}
        yield caps != {capped}, "logits without soft caps" if capped else "soft-capped logits"
        yield bool(config.use_bidirectional_attention), "attention in both directions"
        return
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if config.model_type.removeprefix(PRUNED_PREFIX) in ("mistral", "phi3"):
        slides = window is not None and window < config.max_position_embeddings
    yield slides, f"the sliding window of {window} tokens"


def _ropes(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """Rotary parameters by type of attention."""
    parameters = config.rope_parameters
    return parameters if "full_attention" in parameters else {"full_attention": parameters}


def _sliding(config: PreTrainedConfig) -> list[bool]:
    return [kind == "sliding_attention" for kind in config.layer_types]


def head_dim(config: PreTrainedConfig) -> int:
    """Numbers a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def packed_blocks(config: PreTrainedConfig) -> list[PackedBlock]:
    """What each block of the model has; the block is its own source."""
    missing = {Unit.parse(name) for name in getattr(config, MANIFEST, ())}
    kinds = find_architecture(config).branches
    return [
        PackedBlock({kind: layer for kind in kinds if Unit(layer, kind) not in missing})
        for layer in range(config.num_hidden_layers)
    ]


def metadata(config: PreTrainedConfig, kind: GGMLQuantizationType) -> dict[str, Value]:
    """All keys but the tokenizer's."""
    family = find_family(config)
    architecture = DECI if is_marked(config) else family.architecture
    origin = getattr(config, "depthcut", None) or {}
    model_type = str(config.model_type).removeprefix(PRUNED_PREFIX)
    # Of a name with `phi3` in it llama.cpp takes for granted what tokens there are.
    nameless = "phi" if model_type == "phi3" else model_type
    name = Path(origin.get("base_model", {}).get("source", nameless)).name
    keys: dict[str, Value] = {
        "general.architecture": Value.of(GGUFValueType.STRING, architecture),
        "general.type": Value.of(GGUFValueType.STRING, "model"),
        "general.name": Value.of(GGUFValueType.STRING, name),
        "general.file_type": Value.of(GGUFValueType.UINT32, FILE_TYPES[kind]),
        "general.quantization_version": Value.of(GGUFValueType.UINT32, QUANTISATION_VERSION),
    }
    counts = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "rope.dimension_count": head_dim(config),
    }
    rope = _ropes(config)["full_attention"]
    numbers = {"attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": rope["rope_theta"]}
    if rope["rope_type"] == "linear":
        keys[f"{architecture}.rope.scaling.type"] = Value.of(GGUFValueType.STRING, "linear")
        numbers["rope.scaling.factor"] = rope["factor"]
    if family.by_width:
        counts["attention.sliding_window"] = config.sliding_window
        counts["attention.sliding_window_pattern"] = window_period(_sliding(config), architecture)
    if architecture == "gemma3":
        numbers["rope.freq_base_swa"] = _ropes(config)["sliding_attention"]["rope_theta"]
    if architecture == "gemma2":
        numbers["attn_logit_softcapping"] = config.attn_logit_softcapping
        numbers["final_logit_softcapping"] = config.final_logit_softcapping
    if architecture == "phi3":
        counts["rope.scaling.original_context_length"] = config.max_position_embeddings
    keys |= {f"{architecture}.{key}": Value.of(GGUFValueType.UINT32, count) for key, count in counts.items()}
    keys |= {f"{architecture}.{key}": Value.of(GGUFValueType.FLOAT32, number) for key, number in numbers.items()}
    if architecture == DECI:
        keys |= deci_arrays(packed_blocks(config), heads(config))
    return keys


def heads(config: PreTrainedConfig) -> Heads:
    """Shape of the blocks, which all have the same."""
    count = config.num_hidden_layers
    return Heads(
        queries=[config.num_attention_heads] * count,
        keys=[config.num_key_value_heads] * count,
        ffn_length=[config.intermediate_size] * count,
        head_dim=head_dim(config),
    )


@dataclass(frozen=True)
class Conversion:
    """One tensor of a model on its way to llama.cpp and back.

    Attributes:
        name: in the file.
        num_heads: where its rows are permuted; else None.
        offset: added to its values.
    """

    name: str
    num_heads: int | None = None
    offset: float = 0.0

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values that llama.cpp wants."""
        if self.num_heads is not None:
            tensor = tensor[rotated_order(len(tensor), self.num_heads)]
        return tensor.float() + self.offset if self.offset else tensor

    def backward(self, tensor: torch.Tensor) -> torch.Tensor:
        """The model's values, from those of a file."""
        if self.num_heads is not None:
            # Halves of a head were interleaved: (heads, d/2, 2) -> (heads, 2, d/2).
            pairs = tensor.reshape(self.num_heads, -1, 2, *tensor.shape[1:])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor - self.offset if self.offset else tensor


def conversions(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor, Conversion]]:
    """Every tensor of the model: its name there, itself, and how it goes into the file.

    Raises:
        InputError: the model holds a tensor that its family does not have.
    """
    config = model.config
    family = find_family(config)
    interleaved = family.interleaved or is_marked(config)
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.removeprefix("model.").rpartition(".")
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        known = family.names.get(found[2]) if found else GLOBAL_NAMES.get(module)
        if known is None:
            raise InputError(
                f"the model holds the tensor {name}, for which llama.cpp's {family.architecture} has no place; use the "
                "format hf"
            )
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        yield (
            name,
            tensor,
            Conversion(
                f"blk.{found[1]}.{known}.{suffix}" if found else f"{known}.{suffix}",
                num_heads[known] if interleaved and known in ROTATED else None,
                family.norm_offset if known.endswith("norm") else 0.0,
            ),
        )


def tensors(model: PreTrainedModel, kind: GGMLQuantizationType) -> list[Tensor]:
    """The file's tensors; each is converted when it is written."""
    config = model.config
    made = []
    for _, tensor, conversion in conversions(model):
        stored = stored_type(tuple(tensor.shape), kind)
        dims = tuple(reversed(tensor.shape))
        made.append(Tensor(conversion.name, dims, stored, _pieces(tensor, conversion, stored)))
    if _ropes(config)["full_attention"]["rope_type"] == "llama3":
        divisors = rotary_divisors(model)
        made.append(
            Tensor("rope_freqs.weight", (len(divisors),), GGMLQuantizationType.F32, lambda: [divisors.tobytes()])
        )
    if is_marked(config):
        for index, block in enumerate(packed_blocks(config)):
            made += deci_stubs(index, block, config.hidden_size)
    return made


def _pieces(tensor: torch.Tensor, conversion: Conversion, kind: GGMLQuantizationType) -> Callable[[], list[memoryview]]:
    return lambda: [encode(conversion.forward(tensor.detach().cpu()), kind, conversion.name)]


def stored_type(shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """llama.cpp adds and multiplies vectors in F32 only; a row that is no multiple of a block stays F16."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q8_0 and shape[-1] % 32:
        return GGMLQuantizationType.F16
    return kind


def encode(tensor: torch.Tensor, kind: GGMLQuantizationType, name: str) -> memoryview:
    """A tensor's bytes in a type.

    Raises:
        InputError: a value does not fit into F16.
    """
    if kind == GGMLQuantizationType.BF16:
        content = tensor.to(torch.bfloat16).view(torch.int16).numpy()
    elif kind == GGMLQuantizationType.F16:
        half = tensor.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise InputError(f"values of {name} do not fit into f16; choose --tensor-type bf16, f32 or q8_0")
        content = half.numpy()
    elif kind == GGMLQuantizationType.F32:
        content = tensor.float().numpy()
    else:
        content = quantize(tensor.float().numpy(), kind)
    return np.ascontiguousarray(content).data.cast("B")


def rotary_divisors(model: PreTrainedModel) -> np.ndarray:
    """What llama.cpp divides each plain rotary frequency by: (head_dim / 2), float32."""
    used = model.model.rotary_emb.inv_freq.detach().cpu().double()
    theta = _ropes(model.config)["full_attention"]["rope_theta"]
    plain = theta ** -(torch.arange(0, 2 * len(used), 2, dtype=torch.float64) / (2 * len(used)))
    divisors: np.ndarray = (plain / used).float().numpy()
    return divisors


def restored(file: GgufFile, conversion: Conversion, shape: torch.Size) -> torch.Tensor:
    """A tensor of the model, float32, from what a file holds."""
    stored = file.tensors[conversion.name]
    content = np.frombuffer(b"".join(file.pieces(stored)), dtype=np.uint8)
    values = dequantize(content.reshape(*reversed(stored.dims[1:]), stored.row_bytes), stored.type)
    return conversion.backward(torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape))
