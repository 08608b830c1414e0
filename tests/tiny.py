"""Random models of a few blocks, one of every family, with per-layer settings that a wrong cut would show."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from depthcut.calibration import Samples
from depthcut.export import hf, reload_check
from depthcut.model.architectures import FAMILIES
from depthcut.model.branches import Architecture
from depthcut.types import Unit
from shape_parts import DELTA_NET, EXPERTS, LATENT, NUM_BLOCKS, SHAPE, SLIDING, VOCABULARY
from shapes import FOREIGN, SPECIAL

__all__ = ["DELTA_NET", "EXPERTS", "LATENT", "NUM_BLOCKS", "SHAPE", "SLIDING", "SPECIAL", "VOCABULARY"]

ROUNDING = 64 * torch.finfo(torch.float32).eps
"""What the order of float32 sums may change in a number of the order of one: a log-probability or KL in nats, a cosine,
a logit as a share of the largest. Log-probabilities here are down to -16, so that each is rounded to 8 eps; the sums
over 32 to 97 terms behind them, through six blocks, carry a few roundings of the same size each way."""

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
BYTE_VOCABULARY = 256 + len(SPECIAL_TOKENS)
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
        for name, buffer in made.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.8)
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif "embed" not in name and "wte" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return made


HEADS = {"classes": AutoModelForSequenceClassification, "embedding": AutoModel}
"""What loads models with other heads than those that predict tokens."""


def headed(head: str, family: str = "qwen3", **changes: Any) -> PreTrainedModel:
    """`model` with a head for two classes, or none, in place of that for tokens."""
    causal = model(family, **({"vocab_size": BYTE_VOCABULARY, "pad_token_id": 0} | changes))
    causal.config.num_labels = 2
    made: PreTrainedModel = HEADS[head].from_config(causal.config).eval()
    made.base_model.load_state_dict(causal.base_model.state_dict())
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
    first, second = [layer for layer in (1, 3, 4, 2) if layer not in architecture.staying][:2]
    wanted = {
        "block": {(layer, kind) for layer in (first, second) for kind in architecture.branches},
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


def save_headed(folder: Path, head: str, pooling: str | None = None, **changes: Any) -> Path:
    """Writes a model with another head, and how it pools as sentence-transformers says it."""
    folder.mkdir(parents=True)
    hf.write_directory(headed(head, **changes), tokenizer(), folder)
    if pooling is not None:
        (folder / "modules.json").write_text("[]")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
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
