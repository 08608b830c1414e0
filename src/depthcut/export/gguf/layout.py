"""How llama.cpp wants a model's blocks: names of tensors, per-layer arrays, and the stubs of architecture `deci`.

Whole blocks stay in the stock architecture (`llama`, `qwen2`, `gemma3`). Blocks that lack sublayers become `deci`,
whose per-layer arrays say what each block has. Where llama.cpp's `deci` (b11549) does otherwise than one would think,
each seen in the engine:

- an attention without a feed-forward part is silently passed over, and aborts in the last block: it gets a
  feed-forward part of length 32 with zero weights, which adds exactly nothing;
- a first block without attention does not load, since the first entries are taken for the whole model's: it gets the
  linear attention that `deci` has (heads, but no keys), with zero weights;
- its rotary embedding pairs neighbouring rows, as `llama`'s does, so rows of `qwen2` are permuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from depthcut.gguf.container import Tensor, Value, tensor_bytes
from depthcut.model.packing import PackedBlock
from depthcut.types import InputError

DECI = "deci"
STUB_LENGTH = 32
"""Of the feed-forward part that stands for a missing one: the shortest that every tensor type can hold."""

UNIT_OF_TENSOR = {
    "attn_norm": "attn",
    "attn_q": "attn",
    "attn_k": "attn",
    "attn_v": "attn",
    "attn_output": "attn",
    "attn_q_norm": "attn",
    "attn_k_norm": "attn",
    "post_attention_norm": "attn",
    "ffn_norm": "ffn",
    "ffn_gate": "ffn",
    "ffn_up": "ffn",
    "ffn_down": "ffn",
    "post_ffw_norm": "ffn",
}
"""Which sublayer a tensor of a block belongs to, by the part of its name after `blk.N.`."""

ROTATED = ("attn_q", "attn_k")
"""Tensors whose rows llama.cpp's two kinds of rotary embedding order differently."""

FFN_ARRAYS = ("feed_forward_length",)
"""Per-layer metadata that belongs to the feed-forward part; all other belongs to the attention."""

DECI_FROM = {"llama": False, "qwen2": True}
"""Architectures that `deci` computes alike, and whether their rotated rows must be permuted for it."""


@dataclass(frozen=True)
class Heads:
    """Shape of the blocks of one model.

    Attributes:
        queries: attention heads, by dense block.
        keys: heads of keys and values, by dense block.
        ffn_length: by dense block.
        head_dim: numbers a head.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    ffn_length: Sequence[int]
    head_dim: int


def deci_arrays(packed: Sequence[PackedBlock], heads: Heads) -> dict[str, Value]:
    """The keys that say what each block of a `deci` model has."""
    rows: list[tuple[int, int, int]] = []
    for block in packed:
        attn, ffn = block.sources.get("attn"), block.sources.get("ffn")
        queries, keys = (0, 0) if attn is None else (heads.queries[attn], heads.keys[attn])
        if not rows and attn is None:
            queries = heads.queries[0]
        rows.append((queries, keys, STUB_LENGTH if ffn is None else heads.ffn_length[ffn]))
    names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    arrays = {
        f"{DECI}.{name}": Value.array(GGUFValueType.INT32, column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    lengths = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return arrays | {f"{DECI}.{name}": Value.of(GGUFValueType.UINT32, heads.head_dim) for name in lengths}


def deci_stubs(index: int, block: PackedBlock, hidden_size: int) -> list[Tensor]:
    """What must stand in a `deci` file for what a block lacks; it adds exactly zero."""
    if "ffn" not in block.sources:
        return [
            _constant(f"blk.{index}.ffn_norm.weight", (hidden_size,), ones=True),
            _constant(f"blk.{index}.ffn_gate.weight", (hidden_size, STUB_LENGTH)),
            _constant(f"blk.{index}.ffn_up.weight", (hidden_size, STUB_LENGTH)),
            _constant(f"blk.{index}.ffn_down.weight", (STUB_LENGTH, hidden_size)),
        ]
    if index == 0 and "attn" not in block.sources:
        return [
            _constant(f"blk.{index}.attn_norm.weight", (hidden_size,), ones=True),
            _constant(f"blk.{index}.attn_output.weight", (hidden_size, hidden_size)),
        ]
    return []


def _constant(name: str, dims: tuple[int, ...], *, ones: bool = False) -> Tensor:
    """A norm of ones in F32, or a matrix of zeros in the smallest type that holds its rows."""
    kind = GGMLQuantizationType.F32
    if len(dims) > 1 and dims[0] % 32 == 0:
        kind = GGMLQuantizationType.Q4_0
    size = tensor_bytes(dims, kind)
    content = b"\x00\x00\x80\x3f" * dims[0] if ones else bytes(size)
    return Tensor(name, dims, kind, lambda: [content])


def rotated_order(num_rows: int, num_heads: int) -> list[int]:
    """Which row of the half-split order (Hugging Face, `qwen2`) comes where in the interleaved one (`llama`, `deci`).

    Of a head's rows 0 .. d-1, those of the two halves alternate: 0, d/2, 1, d/2 + 1, ...
    """
    head_dim = num_rows // num_heads
    within = [half * (head_dim // 2) + i for i in range(head_dim // 2) for half in (0, 1)]
    return [head * head_dim + row for head in range(num_heads) for row in within]


def type_name(file_type: int | None) -> str | None:
    """`Q4_1` for what `general.file_type` has as 3; None where it says nothing that is known."""
    names = {kind.value: kind.name.removeprefix("ALL_").removeprefix("MOSTLY_") for kind in LlamaFileType}
    return names.get(file_type) if file_type is not None else None


def file_name(type_name: str | None) -> str:
    """`model.Q4_1.gguf`: GGUF files carry their tensors' type in their name."""
    return f"model.{type_name.upper()}.gguf" if type_name else "model.gguf"


def fitting_period(sliding: Sequence[bool]) -> int | None:
    """The period p by which all attentions slide but those at p-1, 2p-1, ...; None where there is none."""
    for period in range(2, len(sliding) + 2):
        if all(slides == (layer % period < period - 1) for layer, slides in enumerate(sliding)):
            return period
    return None


def window_period(sliding: Sequence[bool], architecture: str = "gemma3") -> int:
    """The period p by which llama.cpp's Gemmas say which attentions slide: all but those at p-1, 2p-1, ...

    Raises:
        InputError: no period says it, and llama.cpp passes over a list, which other architectures may give; or none
            slides, which it does not survive.
    """
    period = fitting_period(sliding)
    if period is not None:
        return period
    rhythm = "".join("s" if slides else "f" for slides in sliding)
    raise InputError(
        f"llama.cpp's {architecture} only knows full attention after every so many sliding ones, and the kept "
        f"attentions are {rhythm} (s slides, f is full); remove equally many sliding ones before every full one, or "
        "use the format hf"
    )


def cut_arrays(metadata: Mapping[str, Value], packed: Sequence[PackedBlock], num_blocks: int) -> dict[str, Value]:
    """Every per-layer array of the metadata with the entries of the kept blocks.

    Args:
        metadata: keys after the architecture's name.
        num_blocks: of the dense model.
    """
    cut = {}
    for name, value in metadata.items():
        if value.element is not None and value.length == num_blocks:
            entries, kind = value.read(), "ffn" if name in FFN_ARRAYS else "attn"
            value = Value.array(value.element, [entries[block.source(kind)] for block in packed])
        cut[name] = value
    return cut
