"""Whether a GGUF is of a language model, and says of its blocks what it holds."""

from __future__ import annotations

import re

from depthcut.gguf.container import GgufFile
from depthcut.types import InputError

ENCODERS = ("clip", "mmproj")
"""Architectures of the files that llama.cpp keeps beside a model for images and sound."""


def check_blocks(file: GgufFile) -> None:
    """Checks the count of blocks against the tensors.

    Raises:
        InputError: the file is an encoder of images, or is of more or fewer blocks than it says.
    """
    architecture = file.get("general.architecture")
    if architecture in ENCODERS or file.get("general.type", "model") in ENCODERS:
        raise InputError(
            f"{file.path} holds the encoder of images or sound of a model (mmproj), not the language model; give that "
            "model's own .gguf"
        )
    said, predicting = file.get(f"{architecture}.block_count"), file.get(f"{architecture}.nextn_predict_layers", 0)
    found = max((int(match[1]) + 1 for name in file.tensors if (match := re.match(r"blk\.(\d+)\.", name))), default=0)
    if isinstance(said, int) and found and not said - int(predicting) <= found <= said:
        raise InputError(
            f"{file.path} is damaged: {architecture}.block_count says {said} blocks, and it holds {found}; download it "
            "again"
        )
