"""A GGUF without some of its units: kept tensors are copied byte for byte, whatever their type.

Nothing is dequantised and no tensor is in memory as a whole, so a large quantised file is pruned on a small machine.
Only the rows of `qwen2`'s queries and keys change their order where it becomes `deci`; a row is quantised by itself, so
that is exact too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from depthcut.export import VerificationError
from depthcut.export.gguf import engine
from depthcut.export.gguf.layout import (
    DECI,
    DECI_FROM,
    ROTATED,
    UNIT_OF_TENSOR,
    Heads,
    cut_arrays,
    deci_arrays,
    deci_stubs,
    rotated_order,
    window_period,
)
from depthcut.export.gguf.whole_blocks import cut_blocks, removed_blocks
from depthcut.gguf.container import GgufFile, StoredTensor, Tensor, Value, read_file, write_file
from depthcut.model.architectures import FAMILIES
from depthcut.model.packing import PackedBlock, check_units, is_dense, pack
from depthcut.types import InputError, Unit

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}
"""Architectures of which sublayers can go, and their model type; of all others whole blocks."""

OTHER_TYPES = {
    "command-r": "cohere",
    "deepseek2": "deepseek_v3",
    "gptneox": "gpt_neox",
    "glm4moe": "glm4_moe",
    "granitehybrid": "granitemoehybrid",
    "lfm2moe": "lfm2_moe",
    "llama4": "llama4_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5_text",
    "starcoder": "gpt_bigcode",
}
"""Architectures that transformers calls by other names, and whose units are known by those."""

GEMMA3_WINDOW_PERIOD = 6
"""What llama.cpp takes where a `gemma3` file says nothing."""

GEMMA3_27B_BLOCKS = 62
"""llama.cpp scales the attention of `gemma3` differently at exactly this block count."""

PROBE_TEXT = "The keepers of the lighthouse wrote down every ship that passed, its flag and its hour."


@dataclass(frozen=True)
class Origin:
    """Where a kept tensor stands in the source.

    Attributes:
        num_heads: where its rows are permuted for the other rotary embedding; else None.
    """

    tensor: StoredTensor
    num_heads: int | None = None


@dataclass(frozen=True)
class Copy:
    """A file to be written.

    Attributes:
        kept: what is copied, by its name in the new file.
        stubs: what stands for missing sublayers.
    """

    source: GgufFile
    metadata: dict[str, Value]
    kept: dict[str, Origin]
    stubs: tuple[Tensor, ...]
    num_blocks: int

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(origin.tensor.dims) for origin in self.kept.values())

    def write(self, path: Path) -> None:
        """Copies the kept tensors in the order of the new blocks."""
        tensors = [
            Tensor(name, origin.tensor.dims, origin.tensor.type, lambda origin=origin: self._pieces(origin))  # type: ignore[misc]
            for name, origin in self.kept.items()
        ]
        write_file(path, self.metadata, [*tensors, *self.stubs])

    def _pieces(self, origin: Origin) -> Iterable[bytes]:
        pieces = self.source.pieces(origin.tensor)
        if origin.num_heads is None:
            return pieces
        content, row = b"".join(pieces), origin.tensor.num_bytes // origin.tensor.dims[-1]
        order = rotated_order(origin.tensor.dims[-1], origin.num_heads)
        return [content[old * row : (old + 1) * row] for old in order]

    def verify(self, path: Path) -> None:
        """Reads the new file back and has llama.cpp, where it is installed, run it in a fresh process.

        Raises:
            VerificationError: a kept tensor is not the source's, an entry is missing, or the engine does not run it.
        """
        written = read_file(path)
        if written.metadata != self.metadata:
            raise VerificationError("the written metadata is not what was meant")
        expected = self.kept.keys() | {stub.name for stub in self.stubs}
        if written.tensors.keys() != expected:
            raise VerificationError(f"the written file lacks or adds {min(written.tensors.keys() ^ expected)}")
        for name, origin in self.kept.items():
            tensor = written.tensors[name]
            same = (tensor.dims, tensor.type) == (origin.tensor.dims, origin.tensor.type)
            if not same or not _equal(written.pieces(tensor), self._pieces(origin)):
                raise VerificationError(f"the written tensor {name} is not the source's {origin.tensor.name}")
        if engine.installed():
            answer = engine.ask(path, text=PROBE_TEXT, length=16, num_new=4)
            told = [value for value in answer.log_probs if value is not None]
            if not told or not all(map(math.isfinite, told)):
                raise VerificationError("llama.cpp computes probabilities that are not finite")


def _equal(first: Iterable[bytes], second: Iterable[bytes]) -> bool:
    """Whether two streams of bytes are the same, however they are cut into pieces."""
    left = right = b""
    firsts, seconds = iter(first), iter(second)
    while True:
        left, right = left or next(firsts, b""), right or next(seconds, b"")
        length = min(len(left), len(right))
        if not length or left[:length] != right[:length]:
            return left == right
        left, right = left[length:], right[length:]


def plan_copy(source: GgufFile, removed: Collection[Unit]) -> Copy:
    """What the file without the given units holds; reads no tensor.

    Raises:
        InputError: the units are not of this model, or llama.cpp has no architecture for what would remain.
    """
    architecture_name = source.get("general.architecture")
    _require_sound(source, architecture_name)
    if architecture_name not in MODEL_TYPES or source.get(f"{architecture_name}.expert_count", 0):
        rest = cut_blocks(source, removed_blocks(source, removed, unit_kinds(architecture_name)))
        kept = {name: Origin(tensor) for name, tensor in rest.kept.items()}
        return Copy(source, rest.metadata, kept, (), rest.num_blocks)
    num_blocks = int(source.get(f"{architecture_name}.block_count"))
    architecture = FAMILIES[MODEL_TYPES[architecture_name]]
    check_units(architecture, num_blocks, removed)
    packed = pack(architecture.units(num_blocks), removed, architecture)
    target = architecture_name if is_dense(packed, architecture) else DECI
    if target == DECI and architecture_name not in DECI_FROM:
        raise InputError(
            f"llama.cpp has no architecture for {architecture_name} blocks that lack sublayers; remove blocks or "
            "pairs, or apply the plan without --to gguf"
        )
    prefix = f"{architecture_name}."
    own = {key.removeprefix(prefix): value for key, value in source.metadata.items() if key.startswith(prefix)}
    cut = cut_arrays(own, packed, num_blocks) | {"block_count": Value.of(GGUFValueType.UINT32, len(packed))}
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith(prefix)}
    metadata |= {"general.architecture": Value.of(GGUFValueType.STRING, target)}
    metadata |= {f"{target}.{name}": value for name, value in cut.items()}
    if target == "gemma3" and removed:
        metadata |= _gemma3_windows(source, packed, num_blocks)
    heads = _heads(source, architecture_name, num_blocks)
    stubs: list[Tensor] = []
    if target == DECI:
        _require_full_rotation(source, architecture_name, heads)
        metadata |= deci_arrays(packed, heads)
        hidden_size = int(source.get(f"{architecture_name}.embedding_length"))
        stubs = [stub for index, block in enumerate(packed) for stub in deci_stubs(index, block, hidden_size)]
    permuted = target == DECI and DECI_FROM[architecture_name]
    return Copy(source, metadata, _kept(source, packed, heads if permuted else None), tuple(stubs), len(packed))


def model_type(architecture: str) -> str:
    """What transformers calls an architecture of llama.cpp, as far as is known."""
    return MODEL_TYPES.get(architecture) or OTHER_TYPES.get(architecture, architecture.replace("-", "_"))


def unit_kinds(architecture: str) -> tuple[str, ...]:
    """The units that make up a block of an architecture of llama.cpp."""
    family = FAMILIES.get(model_type(architecture))
    return ("block",) if family is None else tuple(family.branches)


def _require_sound(source: GgufFile, architecture: str) -> None:
    """Raises InputError where the file is no model's, or lacks what all of its kind have."""
    if source.get("general.type", "model") != "model" or f"{architecture}.block_count" not in source.metadata:
        raise InputError(f"{source.path} holds no language model (general.type {source.get('general.type')!r})")
    for key in ("embedding_length", "attention.head_count", "feed_forward_length"):
        if architecture in MODEL_TYPES and f"{architecture}.{key}" not in source.metadata:
            raise InputError(f"{source.path} is damaged: it has no {architecture}.{key}")


def _per_block(value: Any, num_blocks: int) -> list[int]:
    """A count that a file gives once or for every block."""
    return list(value) if isinstance(value, list) else [int(value)] * num_blocks


def _heads(source: GgufFile, architecture: str, num_blocks: int) -> Heads:
    queries = _per_block(source.get(f"{architecture}.attention.head_count"), num_blocks)
    keys = source.get(f"{architecture}.attention.head_count_kv")
    head_dim = source.get(f"{architecture}.attention.key_length")
    return Heads(
        queries=queries,
        keys=queries if keys is None else _per_block(keys, num_blocks),
        ffn_length=_per_block(source.get(f"{architecture}.feed_forward_length"), num_blocks),
        head_dim=int(head_dim or source.get(f"{architecture}.embedding_length") // queries[0]),
    )


def _require_full_rotation(source: GgufFile, architecture: str, heads: Heads) -> None:
    """`deci` rotates whole heads."""
    rotated = source.get(f"{architecture}.rope.dimension_count", heads.head_dim)
    if rotated != heads.head_dim:
        raise InputError(
            f"{source.path} rotates {rotated} of the {heads.head_dim} numbers of a head, which llama.cpp's deci "
            "cannot; remove blocks or pairs instead"
        )


def _gemma3_windows(source: GgufFile, packed: Sequence[PackedBlock], num_blocks: int) -> dict[str, Value]:
    """The rhythm of sliding attentions after the removal.

    Raises:
        InputError: there is none, or the block count means more than itself to llama.cpp.
    """
    if GEMMA3_27B_BLOCKS in (num_blocks, len(packed)):
        raise InputError(
            f"llama.cpp knows Gemma 3 27B by its {GEMMA3_27B_BLOCKS} blocks and would scale the attention of another "
            "count differently; apply the plan without --to gguf"
        )
    period = source.get("gemma3.attention.sliding_window_pattern", GEMMA3_WINDOW_PERIOD)
    # llama.cpp passes over a list here and takes the default.
    period = GEMMA3_WINDOW_PERIOD if isinstance(period, list) else period
    sliding = [block.sources["attn"] % period < period - 1 for block in packed]
    key = "gemma3.attention.sliding_window_pattern"
    return {key: Value.of(GGUFValueType.UINT32, window_period(sliding))}


def _kept(source: GgufFile, packed: Sequence[PackedBlock], permuted: Heads | None) -> dict[str, Origin]:
    """The source's tensors under their names in the new file.

    Args:
        permuted: shape of the blocks where rotated rows change their order.
    """
    kept: dict[str, Origin] = {}
    blocks: dict[tuple[int, str], list[tuple[str, StoredTensor]]] = {}
    for name, tensor in source.tensors.items():
        found = re.fullmatch(r"blk\.(\d+)\.((\w+)\.(?:weight|bias))", name)
        if found is None and not name.startswith("blk."):
            kept[name] = Origin(tensor)
        elif found is None or found[3] not in UNIT_OF_TENSOR:
            raise InputError(
                f"{source.path} holds the tensor {name}, which belongs to no known sublayer; apply the plan without "
                "--to gguf"
            )
        else:
            blocks.setdefault((int(found[1]), UNIT_OF_TENSOR[found[3]]), []).append((found[2], tensor))
    for index, block in enumerate(packed):
        for kind, layer in block.sources.items():
            for suffix, tensor in blocks.get((layer, kind), []):
                part = suffix.partition(".")[0]
                num_heads = None
                if permuted is not None and part in ROTATED:
                    num_heads = (permuted.queries if part == "attn_q" else permuted.keys)[layer]
                kept[f"blk.{index}.{suffix}"] = Origin(tensor, num_heads)
    return kept
