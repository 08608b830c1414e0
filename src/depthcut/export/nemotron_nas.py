"""The directory that vLLM, SGLang and TensorRT-LLM run where blocks lack sublayers: NVIDIA's `nemotron-nas`.

A Llama checkpoint whose configuration says block by block what there is (`block_configs`); tensors of absent sublayers
are left out, and engines keep no KV cache for an absent attention. Holds Llama, Mistral without a sliding window and
Qwen2 (TensorRT-LLM: not Qwen2). What engines need beyond the model:

- They round the FFN's size up to a multiple of 256, so it is padded with zeros, which changes nothing.
- vLLM takes the first block's attention for granted: where it is gone it is written with zero weights.
- With biases they expect one on the attention's output too: Qwen2 gets a zero one.

Source: the readers in vLLM 0.32 (`nemotron_nas.py`), SGLang and TensorRT-LLM.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import save_torch_state_dict
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.engines import find_interpreter
from depthcut.export import EXPORTS
from depthcut.export.companions import copy_model_files, write_tokenizer
from depthcut.export.config_file import for_every_reader, rope_of
from depthcut.export.hf import make_readable
from depthcut.export.second_reader import verify_with
from depthcut.model.architectures import PRUNED_PREFIX
from depthcut.model.quantisation import require_unquantised
from depthcut.model.sublayers import MANIFEST, is_marked, require_no_emulations
from depthcut.types import InputError

NAS_FAMILIES = ("llama", "mistral", "qwen2")
FFN_MULTIPLE = 256

CONFIGURATION_FILE = Path(__file__).with_name("configuration_decilm.py")
CHECK_SCRIPT = Path(__file__).with_name("nemotron_nas_check.py")
VLLM_SCRIPT = Path(__file__).with_name("vllm_check.py")


@dataclass(frozen=True)
class NemotronNas:
    """Blocks without some sublayers, for the engines that serve them."""

    note: ClassVar[str] = "vLLM and SGLang need --trust-remote-code for it: configuration_decilm.py in the directory"

    def check(self, config: PreTrainedConfig) -> None:
        require_no_emulations(config, "nemotron-nas")
        require_unquantised(config, "nemotron-nas")
        model_type = str(config.model_type).removeprefix(PRUNED_PREFIX)
        reason = None
        if model_type not in NAS_FAMILIES:
            reason = f"it holds models of type {', '.join(NAS_FAMILIES)}, not {model_type}"
        elif _slides(config):
            reason = "it has no sliding windows, and this model's attention slides"
        elif config.hidden_act not in ("silu", "swish"):
            reason = f"engines compute its FFNs with silu, not {config.hidden_act}"
        if reason is not None:
            raise InputError(f"the format nemotron-nas cannot hold this model: {reason}; {_instead(config)}")

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        config = _configuration(model)
        entries = for_every_reader(config, rope_of(model.config))
        (folder / "config.json").write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.copyfile(CONFIGURATION_FILE, folder / CONFIGURATION_FILE.name)
        save_torch_state_dict(_tensors(model, config), str(folder))
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        copy_model_files(model, folder)
        write_tokenizer(tokenizer, folder)
        make_readable(folder)

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Compares loss and greedy tokens, by depthcut's own reader, and by vLLM if it is installed."""
        verify_with("a stock Llama filled from block_configs", CHECK_SCRIPT, folder, model, input_ids)
        if python := find_interpreter("vllm"):
            verify_with("vLLM", VLLM_SCRIPT, folder, model, input_ids, python)


def _slides(config: PreTrainedConfig) -> bool:
    """Whether an attention looks at less than the whole context. Qwen2 names a window that it may not use."""
    if getattr(config, "layer_types", None):
        return "sliding_attention" in config.layer_types
    window = getattr(config, "sliding_window", None)
    return window is not None and window < config.max_position_embeddings


def _instead(config: PreTrainedConfig) -> str:
    if is_marked(config):
        return (
            "use --to zeroed, which every engine runs at the dense model's speed, or --to hf for transformers, or "
            "remove whole blocks or pairs, whose --to hf every engine runs"
        )
    return "its blocks are whole, so use --to hf, which every engine runs"


def _absent(config: PreTrainedConfig) -> set[str]:
    """Sublayers that the model lacks, as `17.attn`; block indices are those of the pruned model."""
    return set(getattr(config, MANIFEST, ()))


def _configuration(model: PreTrainedModel) -> dict[str, Any]:
    """The content of config.json."""
    config = model.config
    given = config.to_dict()
    # What Llama does not know stays behind, but for what depthcut wrote about its own work.
    entries = {name: given.get(name, value) for name, value in LlamaConfig().to_dict().items()}
    entries |= {name: given[name] for name in ("depthcut",) if name in given}
    size = entries["intermediate_size"] + -entries["intermediate_size"] % FFN_MULTIPLE
    absent = _absent(config)
    blocks = [
        {
            # The first block's attention is there in any case.
            "attention": _attention(config, no_op=index > 0 and f"{index}.attn" in absent),
            "ffn": _ffn(size, config.hidden_size, no_op=f"{index}.ffn" in absent),
        }
        for index in range(config.num_hidden_layers)
    ]
    return entries | {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIGURATION_FILE.stem}.DeciLMConfig"},
        "dtype": str(model.dtype).removeprefix("torch."),
        "head_dim": given.get("head_dim") or config.hidden_size // config.num_attention_heads,
        "attention_bias": _has_attention_bias(config),
        "intermediate_size": size,
        "block_configs": blocks,
    }


def _attention(config: PreTrainedConfig, *, no_op: bool) -> dict[str, Any]:
    return {
        "no_op": no_op,
        "n_heads_in_group": None if no_op else config.num_attention_heads // config.num_key_value_heads,
        "replace_with_linear": False,
        "num_sink_tokens": None,
        "sparsify": None,
        "unshifted_sink": False,
        "use_prefill_window_in_sink_attention": False,
        "window_length": None,
    }


def _ffn(size: int, hidden_size: int, *, no_op: bool) -> dict[str, Any]:
    common = {"no_op": no_op, "replace_with_linear": False, "sparsify": None}
    if no_op:
        return common | {"ffn_mult": None}
    return common | {"ffn_mult": 1.5 * size / hidden_size, "intermediate_size": size}


def _has_attention_bias(config: PreTrainedConfig) -> bool:
    # Qwen2 always has biases on queries, keys and values, and its configuration does not say so.
    return bool(getattr(config, "attention_bias", str(config.model_type).removeprefix(PRUNED_PREFIX) == "qwen2"))


def _tensors(model: PreTrainedModel, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's tensors as the engines expect them, by their names in Llama."""
    tensors = dict(model.state_dict())
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    for name, tensor in tensors.items():
        if ".mlp." in name:
            tensors[name] = _padded(name, tensor, config["intermediate_size"])
    present = next(tensor for name, tensor in tensors.items() if name.endswith("q_proj.weight"))
    if "0.attn" in _absent(model.config):
        tensors |= {name: present.new_zeros(shape) for name, shape in _attention_shapes(config).items()}
    if config["attention_bias"]:
        for index, block in enumerate(config["block_configs"]):
            if not block["attention"]["no_op"]:
                name = f"model.layers.{index}.self_attn.o_proj.bias"
                tensors.setdefault(name, present.new_zeros(config["hidden_size"]))
    return tensors


def _padded(name: str, tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros for the units that engines add to the FFN: the columns of what it writes, the rows of what it reads."""
    if name.endswith("down_proj.weight"):
        return torch.nn.functional.pad(tensor, (0, size - tensor.shape[1]))
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        return torch.nn.functional.pad(tensor, (0, 0, 0, size - tensor.shape[0]))
    if name.endswith(("gate_proj.bias", "up_proj.bias")):
        return torch.nn.functional.pad(tensor, (0, size - tensor.shape[0]))
    return tensor


def _attention_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of the first block's attention and of the norm before it."""
    hidden = config["hidden_size"]
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    projections = {
        "q_proj": (heads, hidden),
        "k_proj": (kv_heads, hidden),
        "v_proj": (kv_heads, hidden),
        "o_proj": (hidden, heads),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.layers.0.input_layernorm.weight": (hidden,)}
    for name, shape in projections.items():
        shapes[f"model.layers.0.self_attn.{name}.weight"] = shape
        if config["attention_bias"]:
            shapes[f"model.layers.0.self_attn.{name}.bias"] = shape[:1]
    return shapes


EXPORTS.register(
    "nemotron-nas",
    NemotronNas,
    summary="directory for vLLM, SGLang, TensorRT-LLM where blocks lack sublayers (Llama, Mistral, Qwen2)",
    source="NVIDIA Llama-Nemotron",
)
