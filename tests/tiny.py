"""Random models of a few blocks, one of every family, with per-layer settings that a wrong cut would show."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from depthcut.calibration import Samples
from depthcut.export import hf, reload_check
from depthcut.model.architectures import FAMILIES

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
