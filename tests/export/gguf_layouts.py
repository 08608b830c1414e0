"""GGUF files of architectures that depthcut does not write, laid out as llama.cpp's converter does."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType

import tiny
from depthcut.export.gguf.tokenizer import tokenizer_keys
from depthcut.gguf.container import Tensor, Value, write_file

WINDOW = {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 4}
SETTINGS = {
    "qwen3": {"use_sliding_window": False, "layer_types": ["full_attention"] * tiny.NUM_BLOCKS},
    "qwen3moe": {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "gemma2": WINDOW | {"query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gpt-oss": WINDOW
    | {
        "num_local_experts": 4,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 32,
            "truncate": False,
        },
    },
}
"""Of tiny models, by architecture: what llama.cpp takes for granted of each."""

FAMILY = {"qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}


def model(architecture, **changes):
    family = FAMILY.get(architecture, architecture)
    return tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY, **SETTINGS[architecture] | changes)


def write(model, architecture, path):
    """Writes a model of one of the architectures, all in F32."""
    config = model.config
    counts = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim if architecture != "phi3" else 8,
        "attention.value_length": config.head_dim if architecture != "phi3" else 8,
        "rope.dimension_count": 8,
    }
    numbers = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if architecture in ("gemma2", "gpt-oss"):
        counts["attention.sliding_window"] = config.sliding_window
    if architecture in ("qwen3moe", "gpt-oss"):
        counts["expert_count"] = config.num_local_experts
        counts["expert_used_count"] = config.num_experts_per_tok
        counts["expert_feed_forward_length"] = getattr(config, "moe_intermediate_size", config.intermediate_size)
    if architecture == "gemma2":
        numbers["attn_logit_softcapping"] = config.attn_logit_softcapping
        numbers["final_logit_softcapping"] = config.final_logit_softcapping
    keys = {"general.architecture": Value.of(GGUFValueType.STRING, architecture)}
    if architecture == "phi3":
        counts["rope.scaling.original_context_length"] = config.max_position_embeddings
    if architecture == "gpt-oss":
        counts["expert_feed_forward_length"] = config.intermediate_size
        keys["gpt-oss.rope.scaling.type"] = Value.of(GGUFValueType.STRING, "yarn")
        numbers["rope.scaling.factor"] = config.rope_parameters["factor"]
        counts["rope.scaling.original_context_length"] = 32
    keys |= {f"{architecture}.{key}": Value.of(GGUFValueType.UINT32, count) for key, count in counts.items()}
    keys |= {f"{architecture}.{key}": Value.of(GGUFValueType.FLOAT32, number) for key, number in numbers.items()}
    keys |= tokenizer_keys(tiny.tokenizer(), config.vocab_size)
    write_file(path, keys, [_tensor(*item) for item in _tensors(model, architecture)])
    return path


def _tensors(model, architecture):
    """Name in the file and values of every tensor."""
    (kind,) = [kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().float()
        if architecture == "gemma2" and "norm" in name:
            tensor = tensor + 1
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for part, values in _parts(name, tensor, architecture):
            found = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert found is not None, part
            yield found, values


def _parts(name, tensor, architecture):
    """A tensor under the names that llama.cpp's converter gives it, before the package's map."""
    head, _, last = name.rpartition(".")
    if last.removesuffix("_bias") == "gate_up_proj":
        suffix = "bias" if last.endswith("_bias") else "weight"
        if architecture == "gpt-oss":
            # Interleaved; weights are (experts, inputs, outputs).
            tensor = tensor if suffix == "bias" else tensor.transpose(1, 2)
            halves = tensor[:, ::2], tensor[:, 1::2]
        else:
            halves = tensor.chunk(2, dim=1)
        return [(f"{head}.{part}_proj.{suffix}", half) for part, half in zip(("gate", "up"), halves, strict=True)]
    if last in ("down_proj", "down_proj_bias"):
        bias = last.endswith("_bias")
        tensor = tensor if bias or architecture != "gpt-oss" else tensor.transpose(1, 2)
        return [(f"{head}.down_proj.{'bias' if bias else 'weight'}", tensor)]
    if last == "sinks":
        return [(f"{name}.weight", tensor)]
    return [(name, tensor)]


def _tensor(name, values):
    array = values.contiguous().numpy().astype(np.float32)
    return Tensor(name, tuple(reversed(array.shape)), GGMLQuantizationType.F32, lambda: [array.tobytes()])


@torch.no_grad()
def nll(model, tokens):
    """Of every token after the first, in nats."""
    log_probs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)
    return [-float(log_probs[place, token]) for place, token in enumerate(tokens[1:])]
