"""A GGUF for llama.cpp: in the stock architecture where blocks are whole, else in `deci`.

F32, F16, BF16 and Q8_0 are written here, other types by the user's `llama-quantize`. Nothing heavy is imported before
a model is written, since a GGUF is pruned into a GGUF without torch (`copy.py`).
"""

from __future__ import annotations

import difflib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gguf import GGMLQuantizationType, LlamaFileType

from depthcut.export import EXPORTS
from depthcut.export.gguf.layout import file_name
from depthcut.types import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DIRECT_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
QUANTISED_TYPES = tuple(
    sorted(
        name.removeprefix("MOSTLY_").lower()
        for name in LlamaFileType.__members__
        if name.startswith("MOSTLY_") and name.removeprefix("MOSTLY_").lower() not in DIRECT_TYPES
    )
)
"""Types that `llama-quantize` makes."""

QUANTISER = "llama-quantize"
BY_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Gguf:
    """One file for llama.cpp and what builds on it.

    Attributes:
        tensor_type: of matrices: f32, f16, bf16, q8_0, or a type of llama-quantize (q4_k_m); the model's own where left
            out. Vectors stay f32.
    """

    tensor_type: str | None = None

    note: ClassVar[str] = ""

    def check(self, config: PreTrainedConfig) -> None:
        from depthcut.export.gguf.convert import find_family
        from depthcut.model.quantisation import require_unquantised
        from depthcut.model.sublayers import require_no_emulations

        require_no_emulations(config, "gguf")
        require_unquantised(config, "gguf")
        find_family(config)
        kind = self.tensor_type
        if kind is None or kind in DIRECT_TYPES:
            return
        if kind not in QUANTISED_TYPES:
            near = difflib.get_close_matches(kind.lower(), [*DIRECT_TYPES, *QUANTISED_TYPES], n=3, cutoff=0.5)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"unknown tensor type {kind!r}; {guess}known: {', '.join(DIRECT_TYPES)}, and with {QUANTISER}: "
                f"{', '.join(QUANTISED_TYPES)}"
            )
        if shutil.which(QUANTISER) is None:
            raise InputError(
                f"tensor type {kind!r} is made by {QUANTISER}, which is not on the PATH; install llama.cpp, or choose "
                f"{', '.join(DIRECT_TYPES)}"
            )

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        from depthcut.export.gguf.write import quantise, write_model

        own = BY_DTYPE[str(model.dtype).removeprefix("torch.")]
        kind = self.tensor_type or own
        if kind in DIRECT_TYPES:
            write_model(model, tokenizer, DIRECT_TYPES[kind], folder / file_name(kind))
            return
        plain = folder / file_name(own)
        write_model(model, tokenizer, DIRECT_TYPES[own], plain)
        quantise(plain, folder / file_name(kind), kind)
        plain.unlink()

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        from depthcut.export.gguf.verify import verify_file

        (file,) = folder.glob("*.gguf")
        verify_file(file, model, input_ids)


EXPORTS.register("gguf", Gguf, summary="one file for llama.cpp (--tensor-type)", source="llama.cpp")
