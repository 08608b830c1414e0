"""The files of a model in a directory: fetched from the hub, told apart, and what they are stored in."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedConfig

from depthcut.model.files import PACKAGED_MODELS
from depthcut.types import InputError


def download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Where a hub model's files of some names lie, once they are here. Raises InputError where there are none."""
    known = ", ".join(PACKAGED_MODELS)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", name):
        raise InputError(f"there is no model at {name!r}: give a hub id, a directory, a .gguf file, or one of {known}")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        near = difflib.get_close_matches(name, PACKAGED_MODELS, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"no model {name!r}: it is no local directory or .gguf file, and the hub did not give it "
            f"({type(error).__name__}){hint} (packaged models: {known})"
        ) from error


def identifying_files(folder: Path, kind: str, gguf_file: str | None) -> list[Path]:
    """The files whose bytes tell models apart; a hub model is known by its commit and configuration."""
    if gguf_file:
        return [folder / gguf_file]
    return [folder / "config.json", *(sorted(folder.glob("*.safetensors")) if kind == "directory" else ())]


def stored_dtype_of(folder: Path, config: PreTrainedConfig) -> str:
    """What a configuration says that the weights are stored in. Raises InputError where that is no precision."""
    given = getattr(config, "dtype", None) or torch.float32
    if not (isinstance(given, torch.dtype) and given.is_floating_point):
        raise InputError(
            f"{folder / 'config.json'}: dtype is {str(given).removeprefix('torch.')}, in which no model is computed; "
            "write float32, bfloat16 or float16 there"
        )
    return str(given).removeprefix("torch.")
