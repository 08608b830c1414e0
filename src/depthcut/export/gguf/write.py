"""Writes a Hugging Face model as one GGUF."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.export.gguf.convert import metadata, tensors
from depthcut.export.gguf.tokenizer import tokenizer_keys
from depthcut.gguf.container import Value, read_file, write_file
from depthcut.model.files import file_digest, find_gguf
from depthcut.types import InputError

PROBE_TEXT = (
    "In 1896 the keepers didn't count  all 1024 ships,\n\n\tbut they'll write them down: naïve café, 東京, Привет! "
    "for i in range(10): print(i)\n"
)
"""Contractions, digits, runs of spaces and lines, several scripts: where tokenizers differ."""

PROBE_TOKENS, PROBE_TEXT_KEY = "depthcut.probe.tokens", "depthcut.probe.text"


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: GGMLQuantizationType, path: Path
) -> None:
    """Writes a model; one tensor at a time is converted.

    A short text and its token ids go along, so that whoever loads the file can tell whether its tokenizer is right.

    Raises:
        InputError: the tokenizer is not known, or a value does not fit into the type.
    """
    probe = {PROBE_TOKENS: Value.array(GGUFValueType.INT32, _ids(tokenizer))}
    keys = source_tokenizer_keys(model.config)
    if not keys:
        keys = tokenizer_keys(tokenizer, model.config.vocab_size)
        probe[PROBE_TEXT_KEY] = Value.of(GGUFValueType.STRING, PROBE_TEXT)
    write_file(path, metadata(model.config, kind) | keys | probe, tensors(model, kind))


def _ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])


def source_tokenizer_keys(config: PreTrainedConfig) -> dict[str, Value]:
    """The tokenizer of the GGUF that the model was made from, where that very file is still there.

    It says more than the tokenizer that transformers makes of it, which for example forgets that SmolLM splits digits.
    """
    origin = (getattr(config, "depthcut", None) or {}).get("base_model", {})
    if origin.get("format") != "gguf":
        return {}
    try:
        path = find_gguf(origin["source"])
    except InputError:
        return {}
    if path is None or file_digest([path], None) != origin["digest"]:
        return {}
    return {key: value for key, value in read_file(path).metadata.items() if key.startswith("tokenizer.")}


def quantise(source: Path, target: Path, kind: str) -> None:
    """Has llama.cpp's own tool write a file in another type.

    Raises:
        InputError: it fails; with its last line.
    """
    command = ["llama-quantize", str(source), str(target), kind.upper()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.is_file():
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"llama-quantize could not write {kind}: {lines[-1]}")
