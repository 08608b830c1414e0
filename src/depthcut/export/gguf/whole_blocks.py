"""A GGUF of any architecture without some of its blocks: tensors `blk.N.*` are renumbered, per-block metadata is cut.

That is the model without those blocks wherever the file says all that is to be known of a block. llama.cpp takes some
of it from the block's index or the count of blocks alone: which attentions slide or rotate, which blocks have experts,
how attention is scaled. Such a removal is done where the index says the same of the kept blocks, or a key of the file
can say it, and refused otherwise. Source: `load_arch_hparams` of each architecture in llama.cpp's `src/models/`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

from depthcut.export.gguf.layout import fitting_period
from depthcut.gguf.container import GgufFile, StoredTensor, Value
from depthcut.types import InputError, Unit

BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")
COUNT, PREDICTING, LEADING = "block_count", "nextn_predict_layers", "leading_dense_block_count"
WINDOWS = "attention.sliding_window_pattern"

SLIDING = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2} | dict.fromkeys(
    ("afmoe", "cohere2", "exaone4", "exaone-moe", "llama4", "olmo2", "smallthinker"), 4
)
"""Architectures in which every so many-th attention is full and the others slide, where a file says no other number."""

SAID_BY_KEY = frozenset({"gemma2", "gemma3", "gpt-oss"})
"""Those of them in which the number in the file is followed; tried in the engine."""

RHYTHMS = {
    "llama4": {"blocks that do not rotate": 4},
    "smollm3": {"blocks that do not rotate": 4},
    "qwen3next": {"blocks with full attention": 4},
    "qwen35": {"blocks with full attention": 4},
    "qwen35moe": {"blocks with full attention": 4},
}
"""What else is of every so many-th block, by architecture."""

STEPS = {"interleave_moe_layer_step": "blocks with experts", "full_attention_interval": "blocks with full attention"}
"""Keys that say such a number, and of what."""

KNOWN_BY_COUNT = {
    "command-r": (64, "norms of queries and keys"),
    "deepseek2": (26, "queries that are not of low rank"),
    "gemma2": (46, "attention scaled by width"),
    "gemma3": (62, "attention scaled by width"),
}
"""Counts of blocks by which llama.cpp knows that a model has something: exactly so many; of command-r at least."""

LITE_TOO = 27
"""Another count of deepseek2."""

SHARED_KEYS = "its last blocks read keys and values of earlier ones"

REFUSED = {
    "clip": "it is the part of a multimodal model that reads images, not the decoder",
    "gemma3n": f"{SHARED_KEYS}, and its embeddings have columns for each block",
    "gemma4": f"{SHARED_KEYS}, and its embeddings may have columns for each block",
    "minicpm3": "what its blocks add is scaled by their count",
    "rwkv6": "its stream is halved after every so many blocks",
    "rwkv6qwen2": "its stream is halved after every so many blocks",
    "t5": "it has an encoder beside the decoder",
}
"""Architectures whose blocks cannot leave a file, and why."""

KEEPS_FIRST = {
    "arwkv7": "later blocks read the values of the first",
    "rwkv7": "later blocks read the values of the first",
}


@dataclass(frozen=True)
class Rest:
    """A file without some blocks.

    Attributes:
        kept: the source's tensors by their new names, in the order of the file.
    """

    metadata: dict[str, Value]
    kept: dict[str, StoredTensor]
    num_blocks: int


def num_prunable(source: GgufFile) -> int:
    """Blocks that may be counted as units: all but those that predict further tokens, which come last."""
    architecture = source.get("general.architecture")
    return int(source.get(f"{architecture}.{COUNT}")) - int(source.get(f"{architecture}.{PREDICTING}", 0))


def removed_blocks(source: GgufFile, removed: Collection[Unit], kinds: Collection[str]) -> set[int]:
    """The blocks that a plan removes.

    Args:
        kinds: of the units that make up a block.

    Raises:
        InputError: something else than whole blocks goes.
    """
    by_block: dict[int, set[str]] = {}
    for unit in removed:
        by_block.setdefault(unit.layer, set()).add(unit.kind)
    for layer, found in sorted(by_block.items()):
        if found not in (set(kinds), {"block"}):
            raise InputError(
                f"GGUF files of architecture {source.get('general.architecture')} are pruned by whole blocks, and of "
                f"block {layer} only {' and '.join(sorted(found))} would go; remove whole blocks (--unit block), or "
                "apply the plan without --to gguf"
            )
        if layer >= num_prunable(source):
            raise InputError(f"block {layer} is none of the model's {num_prunable(source)} blocks; give one of those")
    return set(by_block)


def cut_blocks(source: GgufFile, removed: Collection[int]) -> Rest:
    """What a file without some blocks holds; reads no tensor.

    Raises:
        InputError: llama.cpp would take the rest for another model.
    """
    architecture = str(source.get("general.architecture"))
    total = int(source.get(f"{architecture}.{COUNT}"))
    kept = [layer for layer in range(total) if layer not in removed]
    if len(kept) == total - num_prunable(source):
        raise InputError("nothing would remain: remove fewer blocks")
    metadata = dict(source.metadata)
    if removed:
        _require_same_meaning(source, architecture, kept, total)
        metadata |= _renumbered(source, architecture, kept, total)
    places = {layer: index for index, layer in enumerate(kept)}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        found = BLOCK_TENSOR.fullmatch(name)
        if found is None:
            tensors[name] = tensor
        elif int(found[1]) in places:
            tensors[f"blk.{places[int(found[1])]}.{found[2]}"] = tensor
    return Rest(metadata, tensors, len(kept))


def _renumbered(source: GgufFile, architecture: str, kept: Sequence[int], total: int) -> dict[str, Value]:
    """The metadata that changes."""
    prefix = f"{architecture}."
    lengths = {total: kept, num_prunable(source): [layer for layer in kept if layer < num_prunable(source)]}
    found: dict[str, Value] = {}
    for key, value in source.metadata.items():
        if key.startswith(prefix) and value.element is not None and value.length in lengths:
            entries = value.read()
            found[key] = Value.array(value.element, [entries[layer] for layer in lengths[value.length]])
    found[prefix + COUNT] = _like(source.metadata[prefix + COUNT], len(kept))
    if prefix + LEADING in source.metadata:
        leading = source.get(prefix + LEADING)
        found[prefix + LEADING] = _like(source.metadata[prefix + LEADING], sum(layer < leading for layer in kept))
    if architecture in SLIDING and prefix + WINDOWS not in found and _slides(source, architecture):
        period = _window_period(source, architecture)
        sliding = [layer % period < period - 1 for layer in kept]
        if sliding != [index % period < period - 1 for index in range(len(kept))]:
            found[prefix + WINDOWS] = Value.of(GGUFValueType.UINT32, fitting_period(sliding))
    return found


def _like(value: Value, number: int) -> Value:
    return Value.of(value.type, number)


def _slides(source: GgufFile, architecture: str) -> bool:
    """Whether there are windows at all; without a width an architecture may have none."""
    return architecture in SAID_BY_KEY or f"{architecture}.attention.sliding_window" in source.metadata


def _window_period(source: GgufFile, architecture: str) -> int:
    given = source.get(f"{architecture}.{WINDOWS}", SLIDING[architecture])
    return SLIDING[architecture] if isinstance(given, list) else int(given)


def _require_same_meaning(source: GgufFile, architecture: str, kept: Sequence[int], total: int) -> None:
    """Raises InputError where llama.cpp would compute something else with the kept blocks than it does now."""
    if architecture in REFUSED:
        raise InputError(f"no block can leave a GGUF of architecture {architecture}: {REFUSED[architecture]}")
    if architecture in KEEPS_FIRST and 0 not in kept:
        raise InputError(f"block 0 cannot leave a GGUF of architecture {architecture}: {KEEPS_FIRST[architecture]}")
    if source.get(f"{architecture}.attention.shared_kv_layers", 0):
        raise InputError(f"no block can leave {source.path.name}: {SHARED_KEYS}")
    _require_count(architecture, total, len(kept))
    layers = [layer for layer in kept if layer < num_prunable(source)]
    rhythms = dict(RHYTHMS.get(architecture, {}))
    for key, what in STEPS.items():
        if f"{architecture}.{key}" in source.metadata:
            rhythms[what] = int(source.get(f"{architecture}.{key}"))
    for what, period in rhythms.items():
        if period > 1 and not _same(layers, period):
            raise _refusal(architecture, what, period)
    windows = source.metadata.get(f"{architecture}.{WINDOWS}")
    listed = windows is not None and windows.element is not None and architecture != "gemma3"
    if architecture in SLIDING and not listed and _slides(source, architecture):
        period = _window_period(source, architecture)
        sliding = [layer % period < period - 1 for layer in layers]
        told = architecture in SAID_BY_KEY and fitting_period(sliding) is not None
        if not told and not _same(layers, period):
            raise _refusal(architecture, "attentions that do not slide", period)


def _same(layers: Sequence[int], period: int) -> bool:
    """Whether the same blocks are the last of every so many by their new index as by their old one."""
    return all((old % period == period - 1) == (new % period == period - 1) for new, old in enumerate(layers))


def _refusal(architecture: str, what: str, period: int) -> InputError:
    return InputError(
        f"llama.cpp's {architecture} takes every {period}th block, counted anew, for one of the {what}, and the kept "
        f"blocks are not so; remove whole runs of {period}, or use the format hf"
    )


def _require_count(architecture: str, before: int, after: int) -> None:
    """Raises InputError where the count of blocks says something of a model, and would say something else."""
    if architecture not in KNOWN_BY_COUNT:
        return
    count, what = KNOWN_BY_COUNT[architecture]

    def says(number: int) -> bool:
        if architecture == "command-r":
            return number >= count
        return number == count or (architecture == "deepseek2" and number == LITE_TOO)

    if says(before) != says(after):
        raise InputError(
            f"llama.cpp knows {architecture} models with {what} by their count of blocks ({count}), and would take "
            f"{after} blocks for another kind than {before}; remove another number, or use the format hf"
        )
