"""Configuration entries that have one value a block, and how they change when blocks are removed.

Lists of one entry a block are cut to the entries of the kept sublayers; lists of indices and counts of leading blocks
are counted anew; rules such as "every second block" become explicit lists where the modelling code reads such a list
too. What can be said in none of these ways is refused. Source: the configurations of transformers 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from transformers import PreTrainedConfig

from depthcut.model import prediction
from depthcut.model.packing import PackedBlock
from depthcut.model.wrappers import set_num_blocks
from depthcut.types import InputError

FFN_LISTS = frozenset(
    {"mlp_layer_types", "intermediate_size", "activation_sparsity_pattern", "feed_forward_length", "num_experts"}
)
"""Lists of one entry a block that the feed-forward part reads; every other belongs to what mixes tokens."""

NOT_PER_LAYER = (
    frozenset(
        {
            "architectures",
            "attention_types",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "suppress_tokens",
            "begin_suppress_tokens",
            "time_step_limit",
        }
    )
    | prediction.LISTS
)
"""Lists of a configuration whose length can equal the number of blocks only by chance."""

INDEX_LISTS = {"moe_layers": "ffn", "mlp_only_layers": "ffn", "attn_layer_indices": "attn", "full_attn_idxs": "attn"}
"""Lists of the blocks that are of a kind, and which sublayer reads them."""

LEADING_COUNTS = frozenset({"first_k_dense_replace", "num_dense_layers"})
"""How many blocks from the first on have a feed-forward part without experts."""

TRAILING_COUNTS = frozenset({"num_kv_shared_layers"})
"""How many blocks at the end read the keys and values of earlier ones."""

REPEATED = frozenset({"block_types"})
"""Lists of kinds that are repeated until every block has one."""

BY_COUNT = {"minicpm3": "scale_depth"}
"""By type, a factor that is divided by the root of the number of blocks."""

READS_OVERRIDES = frozenset({"dots3_note_text", "gemma4_text", "gemma4_unified_text"})
"""Types whose own code reads the settings that single blocks have (per_layer_config)."""

RANGES = {"moe_layer_start_index": "moe_layer_end_index"}
"""First and last of the blocks that have experts, which are all in a row."""

PERIODS = {"attn_layer_period": "attn_layer_offset", "expert_layer_period": "expert_layer_offset"}
"""Jamba's rules, the block counted from 0: index % period == offset."""

BY_INDEX = {
    "scale_attn_by_inverse_layer_idx": "its attentions are scaled by the index of their block",
    "moe_layer_freq": "which blocks have experts is said by an interval alone",
    "moe_layer_interval": "which blocks have experts is said by an interval alone",
    "hybrid_layer_ids": "its blocks share attentions",
}
"""What cannot be carried over when blocks leave, where it is more than 1; and why."""


def check_layer_config(config: PreTrainedConfig, packed: Sequence[PackedBlock]) -> None:
    """Raises InputError where the configuration cannot say what the packed blocks are."""
    for name, reason in BY_INDEX.items():
        value = getattr(config, name, None)
        if (value and value != 1) or value is True:
            raise InputError(
                f"no block can leave this model, since {reason} ({name}), which its configuration could not say of the "
                "others; give another model"
            )
    if getattr(config, "is_heterogeneous", False) and config.model_type not in READS_OVERRIDES:
        raise InputError(
            "no block can leave this model, since its configuration gives blocks settings of their own by index "
            "(per_layer_config), which few readers follow; take that entry out of config.json, or give another model"
        )
    for period, offset in PERIODS.items():
        if hasattr(config, period):
            _period(config, period, offset, packed)


def cut_config(config: PreTrainedConfig, packed: Sequence[PackedBlock], num_blocks: int) -> None:
    """Makes the block count and all that is said block by block those of the packed blocks, in place.

    Args:
        num_blocks: what the configuration was for.
    """
    entries = config.to_dict()
    cut: dict[str, Any] = {}
    for name, value in entries.items():
        if name in INDEX_LISTS:
            cut[name] = _where(packed, INDEX_LISTS[name], set(value or ()).__contains__)
        elif isinstance(value, list) and len(value) == num_blocks and name not in NOT_PER_LAYER:
            kind = "ffn" if name in FFN_LISTS else "attn"
            cut[name] = [value[block.source(kind)] for block in packed]
        elif name in REPEATED and value:
            cut[name] = [value[block.source("attn") % len(value)] for block in packed]
        elif name in TRAILING_COUNTS:
            cut[name] = len(_where(packed, "attn", range(num_blocks - (value or 0), num_blocks).__contains__))
        elif name in RANGES:
            last = entries[RANGES[name]] % num_blocks
            chosen = _where(packed, "ffn", range(value, last + 1).__contains__)
            cut[name], cut[RANGES[name]] = (chosen[0], chosen[-1]) if chosen else (len(packed), len(packed) - 1)
        elif name in LEADING_COUNTS:
            cut[name] = len(_where(packed, "ffn", range(value or 0).__contains__))
    if entries.get("decoder_sparse_step", 1) != 1:
        step, dense = entries["decoder_sparse_step"], set(entries.get("mlp_only_layers") or ())
        cut["mlp_only_layers"] = _where(packed, "ffn", lambda layer: layer in dense or (layer + 1) % step != 0)
        cut["decoder_sparse_step"] = 1
    if "attention_layers" in cut:
        # GPT-Neo reads this, and makes the plain list of it.
        cut["attention_types"] = [[[kind], 1] for kind in cut["attention_layers"]]
    for period, offset in PERIODS.items():
        if period in entries:
            cut[period], cut[offset] = _period(config, period, offset, packed)
    if factor := BY_COUNT.get(config.model_type):
        cut[factor] = _same_quotient(entries[factor], num_blocks, len(packed))
    overrides = {int(layer): values for layer, values in (entries.get("per_layer_config") or {}).items()}
    if overrides:
        config.per_layer_config = None
    set_num_blocks(config, len(packed))
    without_prediction_layers(config)
    for name, value in cut.items():
        setattr(config, name, value)
    if overrides:
        sources = [block.source("attn") for block in packed]
        config.per_layer_config = {
            index: overrides[source] for index, source in enumerate(sources) if source in overrides
        }
    layer_types = getattr(config, "layer_types", None)
    if layer_types and getattr(config, "use_sliding_window", False) and hasattr(config, "max_window_layers"):
        # Says from which block on attention slides; readers without layer_types still go by it.
        full = [kind == "full_attention" for kind in layer_types]
        config.max_window_layers = full.index(False) if False in full else len(full)


def _same_quotient(factor: float, num_blocks: int, num_kept: int) -> float:
    """The factor for which factor / sqrt(num_kept) equals the old factor / sqrt(num_blocks), bit for bit where floats
    allow it.
    """
    wanted = factor / math.sqrt(num_blocks)
    found = wanted * math.sqrt(num_kept)
    near = [found, math.nextafter(found, math.inf), math.nextafter(found, -math.inf)]
    return min(near, key=lambda value: abs(value / math.sqrt(num_kept) - wanted))


def without_prediction_layers(config: PreTrainedConfig) -> None:
    """Makes a configuration say, in place, that there are no layers that predict further tokens."""
    for name in prediction.COUNTS:
        if getattr(config, name, None):
            setattr(config, name, 0)


def _where(packed: Sequence[PackedBlock], kind: str, of_kind: Callable[[int], object]) -> list[int]:
    """Indices of the packed blocks whose sublayer of a kind came from a dense block for which `of_kind` is true."""
    return [index for index, block in enumerate(packed) if of_kind(block.source(kind))]


def _period(config: PreTrainedConfig, period: str, offset: str, packed: Sequence[PackedBlock]) -> tuple[int, int]:
    """The period and offset that describe the packed blocks as the configuration's describe the dense ones.

    Raises:
        InputError: none do.
    """
    old_period, old_offset = getattr(config, period), getattr(config, offset)
    kind = "attn" if period.startswith("attn") else "ffn"
    chosen = _where(packed, kind, lambda layer: layer % old_period == old_offset)
    found = _fitting_period(chosen, len(packed))
    if found is None:
        raise InputError(
            f"after this removal the blocks {', '.join(map(str, chosen))} of {len(packed)} would be those with "
            f"{'attention' if kind == 'attn' else 'experts'}, which no {period} and {offset} say; remove as much from "
            "each period"
        )
    return found


def _fitting_period(chosen: Collection[int], count: int) -> tuple[int, int] | None:
    """(period, offset) by which exactly these of the first `count` indices are chosen."""
    for period in range(1, count + 2):
        for offset in range(period):
            if [index for index in range(count) if index % period == offset] == list(chosen):
                return period, offset
    return None
